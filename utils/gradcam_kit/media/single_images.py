"""Single images and videos, without a dataset: faces are cropped, explained and written."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from ..base.decision import UNKNOWN
from ..base.errors import InputError, RunError
from ..base.files import new_folder, take_place, write_whole
from ..base.text import in_number_order, one_line, printable
from ..data.folder_dataset import IMAGE_SUFFIXES
from ..data.frame import Frame
from ..data.images import UnreadableImage, decode_image, read_file
from ..drawing.overlays import LONGEST, PastedCrop, encode, paste, text_line
from ..explaining.checking import MapChecker
from ..explaining.real_tokens import Bank, tried, with_bank
from ..judge.choosing import choose_map, in_batches, trial_images
from ..judge.verdict import FEWEST_IMAGES, choice_lines, judgements
from ..model.detector import LoadedDetector
from ..run.explainer import explain_images
from ..store.sample import Sample
from ..store.sample_folder import RenderedSample, above_lines, summary_line, write_sample
from .explain_clips import ClipVideo, explain_clips_of
from .explain_video import VideoSummary, explain_video
from .faces import LEAST_CONFIDENCE, NoFaceError, Photographs, View, face_finder, is_installed
from .tracks import FrameViews
from .video_files import VIDEO_SUFFIXES, UnreadableVideo

OWN_BANK = "real_*.webp"  # real images next to a detector's weights
MAX_NAME_BYTES = 200  # of a folder named after an image; file systems allow 255, and a suffix may follow
LEAST_WIDTH = 480  # of the picture of a face crop, in pixels
BATCH, POOL = 16, 8  # images per batch, and images searched for each one that the trial needs


@dataclass
class SingleImages:
    """Explains files one by one, and counts verdicts and failures."""

    detector: LoadedDetector
    photographs: Photographs
    checker: MapChecker | None  # None: maps are not checked
    image_format: str = "png"
    save_raw: bool = False
    words: Counter[str] = field(default_factory=Counter)  # verdict → number of maps
    left_out: int = 0

    def explain(self, files: Sequence[Path], output: Path) -> None:
        """Write heatmaps of every file below `output`. Raises RunError at the end if files were skipped."""
        for file, folder in zip(files, output_folders(files, output), strict=True):
            try:
                if is_video(file):
                    self._video(file, folder)
                else:
                    self._image(file, folder)
            except (UnreadableImage, UnreadableVideo, NoFaceError) as error:
                print(printable(f"{file}: left out: {error}"), file=sys.stderr)
                self.left_out += 1
        if self.words:
            counts = ", ".join(f"{count} {word}" for word, count in self.words.most_common())
            print(f"map check: {counts} (of {sum(self.words.values())}; see sample<i>.json)", file=sys.stderr)
        if self.left_out:
            raise RunError(f"{self.left_out} of {len(files)} files were left out, see above")

    def _image(self, file: Path, folder: Path) -> None:
        photo = decode_image(read_file(str(file)), None)
        views, remark = self.photographs.views(photo)
        if remark:
            print(printable(f"{file}: {remark}"), file=sys.stderr)
        every = self.photographs.mode == "all"
        explained = []
        for number, view in enumerate(views, start=1):
            drawn, name, place = self._render(view, photo, file), f"{file}", folder
            explained.append((view, drawn))
            if every:
                name, place = f"{file}, face {number} of {len(views)}{_sure(view)}", folder / f"face{number}"
            place.parent.mkdir(parents=True, exist_ok=True)
            check_room(place)
            made = place.with_name(f".{place.name}.made.partial")
            new_folder(made)  # a kill may have left one
            write_sample(made, drawn, self.image_format, self.save_raw)
            if not every:
                self._write_picture(made, folder.name, photo, explained)
            take_place(made, place)
            self.words.update(layer.check.word for layer in drawn.sample.layers if layer.check)
            print(printable(f"{name}: fake probability {drawn.sample.prob_fake:.4f}, heatmaps in {place}"))
            for layer in drawn.sample.faint_layers:
                print(printable(f"{name}: {layer} is faint: a thousand times weaker than another layer"))
        if every:
            self._write_picture(folder, folder.name, photo, explained)

    def _write_picture(
        self, folder: Path, name: str, photo: np.ndarray, explained: Sequence[tuple[View, RenderedSample]]
    ) -> None:
        """Write the picture to show to others, named after the input."""
        picture = encode(whole_picture(photo, explained), self.image_format)
        write_whole(folder / f"{name}_heatmap.{self.image_format}", picture)

    def _render(self, view: View, photo: np.ndarray, file: Path) -> RenderedSample:
        """Explain one view, check it if there is a checker, and draw it."""
        pixels = to_pixels(view.image)
        explanation, drawn, found = explain_images(self.detector, pixels, self.checker, [0])
        checks = {layer: of_image for layer, (of_image,) in found.items()}
        frame = Frame(str(file), "single images", "unknown", "none", UNKNOWN, 0)
        choice = self.detector.model.gradcam_choice
        sample = Sample.of(frame, explanation, 0, drawn[0], self.detector.settings, choice, checks)
        pasted = None if view.matrix is None else PastedCrop(photo, view.matrix)
        return RenderedSample(sample, view.image, drawn[0], pasted)

    def _video(self, file: Path, folder: Path) -> None:
        views = FrameViews(self.photographs)
        summary: VideoSummary | ClipVideo
        if self.detector.settings.clip_size is None:
            summary = explain_video(self.detector, file, folder, views, self.checker is not None)
        else:
            summary = explain_clips_of(self.detector, file, folder, views)
        print(printable(f"{file}: {summary.line()}, video in {folder}"))
        for remark in summary.remarks:
            print(printable(f"{file}: {remark}"), file=sys.stderr)

    def choose_map(self, files: Sequence[Path], images: int) -> None:
        """Choose the map on the first `images` of `files` that the detector calls fake, and print the choice."""
        if len(files) < FEWEST_IMAGES:
            return
        model, target = self.detector.model, self.detector.gradcam.target
        margins = tried(self.detector.as_subject(), in_batches(BATCH)).margins
        batches = ({"image": batch} for batch in self._batches(files[: POOL * images], self.photographs))
        try:
            given = trial_images(margins, batches, images, target if target in ("margin", "real") else "fake")
        except InputError:  # no file can be read; `explain` prints the reasons
            return
        subject = with_bank(self.detector.as_subject(), given)
        model.gradcam_bank = subject.bank
        choice = choose_map(tried(subject, in_batches(BATCH)), given, subject.candidates(), model.gradcam_named())
        model.set_gradcam_choice(choice)
        print("\n".join([*choice_lines(choice), *judgements(choice)]), file=sys.stderr)  # stdout has one line per image

    def use_bank(self, folder: Path | None) -> None:
        """Compare patches with those of the images in `folder` that the detector calls real.

        `folder` None: the images next to its weights, if any, as for the embedded detector. Raises InputError for a
        folder without such images.
        """
        weights = self.detector.settings.weights_path
        if folder is None and (weights is None or not any(weights.parent.glob(OWN_BANK))):
            return
        # Its own images are face crops.
        how = replace(self.photographs, mode="off", find=None) if folder is None else self.photographs
        folder = folder or Path(weights or "").parent
        files = [file for file in find_images(str(folder), "--bank") if not is_video(file)]
        batches = list(self._batches(files, how))
        if not batches:
            raise InputError(f"--bank {folder}: none of its {len(files)} files is a readable image")
        self.detector.model.gradcam_bank = Bank.of(self.detector, batches)

    def _batches(self, files: Sequence[Path], how: Photographs) -> Iterator[torch.Tensor]:
        """Yield the first view of each readable file as normalised images (B, 3, R, R), BATCH at a time."""
        for start in range(0, len(files), BATCH):
            found = []
            for file in files[start : start + BATCH]:
                with suppress(UnreadableImage, NoFaceError):  # `explain` prints the reason
                    views, _ = how.views(decode_image(read_file(str(file)), None))
                    found.append(to_pixels(views[0].image))
            if found:
                yield self.detector.normalise(torch.cat(found))


def whole_picture(photo: np.ndarray, explained: Sequence[tuple[View, RenderedSample]]) -> np.ndarray:
    """Draw the first map of every explained face into its photograph (H, W, 3) uint8 RGB, above a line for each face.

    Several faces are numbered 1, 2, 3. A face crop is enlarged, so that the line fits.
    """
    lines, several = [], len(explained) > 1
    for number, (view, drawn) in enumerate(explained, start=1):
        layer = drawn.layers[0]
        lines.append(f"{number}: " * several + summary_line(drawn.sample, layer.name))
        if view.matrix is not None:
            photo = paste(photo.copy(), layer.overlay, view.matrix)
        else:
            times = -(-LEAST_WIDTH // layer.overlay.shape[1])
            photo = cv2.resize(layer.overlay, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)
    scale = min(1.0, LONGEST / max(photo.shape[:2]))
    if scale < 1:
        photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    side = max(22, photo.shape[1] // 32)
    for number, (view, _) in enumerate(explained, start=1):
        if several and view.face is not None:  # after every face is pasted, because faces may overlap
            left, top = (max(0, round(scale * edge)) for edge in view.face.box[:2])
            place = photo[top : top + side, left : left + side]
            place[:] = text_line(f"{number}", side, side, side * 2 // 3, centred=True)[
                : place.shape[0], : place.shape[1]
            ]
    return above_lines(photo, lines)


def _sure(view: View) -> str:
    """Return dlib's confidence in a face as text, or ""."""
    return "" if view.face is None or view.face.confidence is None else f" (dlib {view.face.confidence:.2f})"


def photographs(
    size: int, face_crop: str | None, landmark_model: Path | None, least_confidence: float = LEAST_CONFIDENCE
) -> Photographs:
    """Return the cropper for photographs. Raises InputError if faces are required and dlib or its model is missing."""
    mode = face_crop or ("largest" if landmark_model else "auto")
    finds = mode in ("largest", "all") or landmark_model or (mode == "auto" and is_installed())
    return Photographs(size, mode, face_finder(landmark_model, least_confidence) if finds else None)


def to_pixels(image: np.ndarray) -> torch.Tensor:
    """Convert an image (H, W, 3) to (1, 3, H, W), both uint8."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).unsqueeze(0)


def make_output(folder: Path) -> None:
    """Create the output folder. Raises InputError if it cannot be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be created ({one_line(error)}); give another folder") from error


def check_room(place: Path) -> None:
    """Raise InputError if `place` holds anything but an earlier sample."""
    if place.is_symlink() or (place.exists() and not any(place.glob("sample*.json"))):
        raise InputError(f"{place}: exists and is not a sample's folder: move it, or give another output folder")


def is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEO_SUFFIXES


def find_images(pattern: str, flag: str = "--input") -> list[Path]:
    """Return the images and videos that a file, folder or pattern names, sorted. Raises InputError if there is none."""
    path = Path(pattern)
    if os.path.isfile(path):  # noqa: PTH113 (Path's method raises for a name of 300 characters)
        return [path]
    if os.path.isdir(path):  # noqa: PTH112
        suffixes = IMAGE_SUFFIXES + VIDEO_SUFFIXES
        found = [file for file in path.iterdir() if file.suffix.lower() in suffixes and _is_meant(file)]
        kind = f"no image or video ({', '.join(suffixes)}) in this folder"
    else:
        found = [Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]  # noqa: PTH207
        special = os.path.exists(path)  # noqa: PTH110
        kind = "a pipe, socket or device" if special else "no such file or folder, and no file matches that pattern"
    if not found:
        raise InputError(f"{flag} {pattern!r}: {kind}")
    return sorted(found, key=lambda file: (in_number_order(str(file.parent)), in_number_order(file.name)))


def _is_meant(file: Path) -> bool:
    """Tell whether the path is a file, and for `.ts` a stream (which begins with G, 0x47) instead of TypeScript."""
    if not file.is_file() or file.suffix.lower() != ".ts":
        return file.is_file()
    with file.open("rb") as opened:
        return b"G" in opened.read(5)  # in M2TS, after a time stamp of four bytes


def output_folders(files: Sequence[Path], output: Path) -> Iterator[Path]:
    """Yield one folder per image, named after it; repeated names get a number."""
    taken: set[str] = set()
    last: dict[str, int] = {}
    for file in files:
        stem = file.stem if file.stem.strip(".") else f"_{file.name}"  # the stem of "...png" is the folder above
        while len(os.fsencode(stem)) > MAX_NAME_BYTES:
            stem = stem[:-1]
        name = stem
        while name in taken:  # another image's own name may end in such a number
            last[stem] = last.get(stem, 1) + 1
            name = f"{stem}_{last[stem]}"
        taken.add(name)
        yield output / name
