"""Write a synthetic deepfake dataset in DeepfakeBench's layout: frames, masks, landmarks and dataset JSON.

    python examples/make_demo_data.py --output data/demo --seed 7 [--split train val test] [--videos N]

Five kinds of local forgery, each a dataset of its own (`eyeswap`, ...) with real and fake videos, and all of them as
`demo`. A fake video carries the name of the real video it was made from and differs from it inside its mask only. Every
image follows from the seed and its own name alone, so neither the number of processes nor the other splits
change it, and no two videos share a face.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.synthetic_camera import (
    develop,
    draw_background,
    draw_shoulders,
    moved,
    photograph,
    random_camera,
    random_light,
    random_pose,
    sensor_noise,
)
from examples.synthetic_faces import draw_head, skin_colour
from examples.synthetic_forgeries import KINDS, forge, forged_mask, random_forgery
from examples.synthetic_shapes import Array, random_features

SPLITS = ("train", "val", "test")
REAL = "demo_Real"
VIDEOS = {"train": 360, "val": 8, "test": 25}  # real and fake pairs for each kind of forgery
FRAMES = {"train": 2, "val": 3, "test": 3}


class Video(NamedTuple):
    """A real video and the fake made from it. Every pixel follows from the name and the seed."""

    split: str
    kind: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.split}_{self.kind}_{self.number:04d}"


def draw_video(video: Video, seed: int) -> list[tuple[Array, Array, Array, Array]]:
    """Draw the frames of a pair: real and fake (224, 224, 3) uint8 RGB, mask (224, 224) uint8, landmarks (81, 2)."""
    rng = np.random.default_rng([seed, SPLITS.index(video.split), KINDS.index(video.kind), video.number])
    light, ambient = random_light(rng)
    skin = skin_colour(rng)
    head = draw_head(random_features(rng), rng, skin, light, ambient)
    donor_light = light + rng.normal(0, 0.15, 3).astype(np.float32)
    donor_skin = skin * rng.uniform(0.85, 1.15, 3).astype(np.float32)  # a forger picks a donor similar to the target
    donor = draw_head(random_features(rng), rng, donor_skin, donor_light / np.linalg.norm(donor_light), ambient)
    camera, pose, forgery = random_camera(rng), random_pose(rng), random_forgery(video.kind, rng)
    background = draw_background(rng)
    draw_shoulders(background, rng, skin, pose, light)
    frames = []
    for _ in range(FRAMES[video.split]):
        target, landmarks = photograph(head, background, pose, camera)
        patch, patch_landmarks = photograph(donor, background, pose, camera)
        noise = sensor_noise(camera, rng)
        fake, area = forge(forgery, target, landmarks, patch, patch_landmarks, noise)
        frames.append((develop(target + noise, camera), develop(fake, camera), forged_mask(area), landmarks))
        pose = moved(pose, rng)
    return frames


def write_video(video: Video, seed: int, output: Path) -> None:
    fake_label = f"{video.kind}_Fake"
    for index, (real, fake, mask, landmarks) in enumerate(draw_video(video, seed)):
        write_image(output / frame_path(REAL, video, index), real)
        write_image(output / frame_path(fake_label, video, index), fake)
        write_image(output / fake_label / "masks" / video.name / f"{index:03d}.png", mask)
        for label in (REAL, fake_label):
            path = output / label / "landmarks" / video.name / f"{index:03d}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, landmarks)


def write_image(path: Path, pixels: Array) -> None:
    """Write RGB or grey pixels as PNG, with little compression: noise hardly shrinks, and the demo waits for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    if not cv2.imwrite(str(path), ordered, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise OSError(f"{path} could not be written")


def frame_path(label: str, video: Video, index: int) -> str:
    return f"{label}/frames/{video.name}/{index:03d}.png"


def dataset_json(name: str, videos: list[Video]) -> dict[str, Any]:
    """Return DeepfakeBench's dataset JSON: dataset > label > split > video > label and frames."""
    labels = [REAL, *(f"{kind}_Fake" for kind in KINDS if any(video.kind == kind for video in videos))]
    tree: dict[str, Any] = {label: {split: {} for split in SPLITS} for label in labels}
    for video in videos:
        for label in (REAL, f"{video.kind}_Fake"):
            frames = [frame_path(label, video, index) for index in range(FRAMES[video.split])]
            tree[label][video.split][video.name] = {"label": label, "frames": frames}
    return {name: tree}


def _write(job: tuple[Video, int, Path]) -> None:
    cv2.setNumThreads(1)  # the processes already share the cores
    write_video(*job)


def make(output: Path, seed: int, splits: list[str], videos: int | None = None, processes: int | None = None) -> int:
    """Write the dataset: `videos` pairs of real and fake per kind of forgery. Returns the number of frames."""
    made = [
        Video(split, kind, number)
        for split in splits
        for kind in KINDS
        for number in range(VIDEOS[split] if videos is None else videos)
    ]
    jobs = [(video, seed, output) for video in made]
    with multiprocessing.get_context("spawn").Pool(processes or os.cpu_count()) as pool:
        for _ in tqdm(pool.imap_unordered(_write, jobs, chunksize=4), total=len(jobs), unit="video", desc="Drawing"):
            pass
    folder = output / "dataset_json"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*KINDS, "demo"):
        chosen = [video for video in made if name in ("demo", video.kind)]
        (folder / f"{name}.json").write_text(json.dumps(dataset_json(name, chosen), indent=1) + "\n", encoding="utf-8")
    return sum(2 * FRAMES[video.split] for video in made)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a synthetic deepfake dataset in DeepfakeBench's layout.")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder to write; files of the same name are overwritten"
    )
    parser.add_argument("--seed", type=int, default=7, help="seed of the whole dataset (default 7)")
    parser.add_argument(
        "--split",
        nargs="+",
        choices=SPLITS,
        default=list(SPLITS),
        help="splits to write (default: all)",
    )
    parser.add_argument(
        "--videos", type=int, help=f"pairs of a real and a fake video per kind of forgery (default {VIDEOS})"
    )
    parser.add_argument("--processes", type=int, help="default: one per core")
    arguments = parser.parse_args()
    frames = make(arguments.output, arguments.seed, arguments.split, arguments.videos, arguments.processes)
    print(f"{frames} frames in {arguments.output}, dataset JSON in {arguments.output / 'dataset_json'}")


if __name__ == "__main__":
    main()
