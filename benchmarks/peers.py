"""Whose maps find the forgery? Ours beside torchcam's and pytorch-grad-cam's: same tower, layers and images.

    python examples/make_demo_data.py --output data/held_out --seed 11 --split test
    python benchmarks/peers.py --data data/held_out [--frames 100]

Every library gives maps of the logit "fake" for the same detected fakes, at what each encoder block reads: its
`layer_norm1`, and the residual stream, which peers reach as the output of the module before. Their maps are judged as
they come. Prints Markdown: share of maps whose hottest pixel is in the forged region / share of the map's mass in it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.engine import Logits, without_torchvision
from utils.gradcam_kit.base.allowed import SITES
from utils.gradcam_kit.base.files import TRAINING_FOLDER
from utils.gradcam_kit.data.frame import evenly_spaced
from utils.gradcam_kit.data.readers import read_dataset
from utils.gradcam_kit.engine.layers import block_names
from utils.gradcam_kit.engine.maps import normalise
from utils.gradcam_kit.engine.methods import ATTENTION_METHODS, METHODS
from utils.gradcam_kit.engine.recipe import Recipe, sites_of
from utils.gradcam_kit.judge.localisation import energy_in_mask, pointing_game
from utils.gradcam_kit.measure.samples import DetectedFakes, read_samples
from utils.gradcam_kit.measure.sweep import localise_maps, make_maps
from utils.gradcam_kit.model.detector import LoadedDetector
from utils.gradcam_kit.model.load import load_detector
from utils.gradcam_kit.settings.config import run_settings

BATCH = 25
Score = dict[str, dict[str, str]]  # row → block → "pointing / energy"
ToGrid = Callable[[Tensor], Tensor]
MakeMaps = Callable[[Any, nn.Module, list[nn.Module], Tensor, ToGrid], list[Tensor]]


class Case(NamedTuple):
    """The detector and the fakes that it detects, with masks."""

    detector: LoadedDetector
    samples: DetectedFakes
    blocks: list[str]

    def modules(self, site: str) -> list[nn.Module]:
        """The modules whose output a peer has to hook for each block."""
        tower = self.detector.model.explained_tower
        if site == "layer_norm1":
            return [tower.get_submodule(f"{block}.layer_norm1") for block in self.blocks]
        return [tower.get_submodule(name) for name in ("pre_layrnorm", *self.blocks[:-1])]

    def to_grid(self, tokens: Tensor) -> Tensor:
        grid = self.detector.model.patch_grid(*self.samples.pixels.shape[2:])
        return tokens[:, 1:].transpose(1, 2).unflatten(2, grid)


def load_case(data: Path, frames: int) -> Case:
    flags = {"dataset_json_folder": str(data / "dataset_json"), "dataset_root_rgb": str(data)}
    yaml = TRAINING_FOLDER / "config" / "detector" / "clip_gradcam_demo.yaml"
    settings = run_settings(yaml, None, flags)
    detector = load_detector(settings.detector, torch.device("cpu"))
    fakes = [frame for frame in read_dataset("demo", settings.data) if frame.label == 1]
    every = read_samples(fakes, settings.detector.resolution, BATCH, 0)
    detected = torch.cat([detector.predict(part)[1] > 0.5 for part in every.pixels.split(BATCH)])
    found = [frame for frame, said_fake in zip(fakes, detected.tolist(), strict=True) if said_fake]
    samples = read_samples(evenly_spaced(found, frames), settings.detector.resolution, BATCH, 0)
    return Case(detector, samples, block_names(detector.model.explained_tower))


def judged(maps: Tensor, samples: DetectedFakes) -> str:
    masked = samples.masked
    drawn, masks = maps[masked], samples.masks[masked]
    return f"{pointing_game(drawn, masks).mean():.2f} / {energy_in_mask(drawn, masks).mean():.2f}"


def ours(case: Case) -> Score:
    methods, samples = [*METHODS, *ATTENTION_METHODS], case.samples
    kinds = [(method, site) for method in methods for site in sites_of(method, SITES)]
    recipes = [Recipe(method, block, site) for method, site in kinds for block in case.blocks]
    maps = make_maps(case.detector, recipes, samples.pixels, "fake", BATCH)
    table: Score = {}
    for spec, found in localise_maps(case.detector, maps, samples.masks, samples.masked).items():
        row = f"ours | {spec.method} | {spec.site}"
        table.setdefault(row, {})[spec.layer] = f"{found.pointing.mean():.2f} / {found.energy.mean():.2f}"
    return table


def torchcam_maps(cls: Any, model: nn.Module, modules: list[nn.Module], image: Tensor, to_grid: ToGrid) -> list[Tensor]:
    names = {module: name for name, module in model.named_modules()}
    with cls(model, target_layer=[names[module] for module in modules], reshape_transform=to_grid) as extractor:
        maps = extractor(1, model(image))
    return [normalise(one.detach().relu(), (image.shape[2], image.shape[3])) for one in maps]


def grad_cam_maps(cls: Any, model: nn.Module, modules: list[nn.Module], image: Tensor, to_grid: ToGrid) -> list[Tensor]:
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    found = []
    for module in modules:  # it averages over layers, so one at a time
        with cls(model, [module], reshape_transform=to_grid) as cam:
            found.append(torch.from_numpy(cam(image, [ClassifierOutputTarget(1)] * len(image))).float())
    return found


def theirs(case: Case, library: str, classes: dict[str, Any], make_maps: MakeMaps) -> Score:
    """Every method of one library at both sites of every block."""
    model = Logits(case.detector.model)
    table: Score = {}
    for name, cls in classes.items():
        for site in SITES:
            parts = [
                make_maps(cls, model, case.modules(site), case.detector.normalise(part), case.to_grid)
                for part in case.samples.pixels.split(BATCH)
            ]
            maps = [torch.cat(one) for one in zip(*parts, strict=True)]
            table[f"{library} | {name} | {site}"] = {
                block: judged(one, case.samples) for block, one in zip(case.blocks, maps, strict=True)
            }
    return table


def peers(case: Case) -> Score:
    """What can be imported of torchcam and pytorch-grad-cam."""
    table: Score = {}
    try:
        from torchcam import methods as tc

        classes = {"gradcam": tc.GradCAM, "gradcam++": tc.GradCAMpp, "layercam": tc.LayerCAM, "xgradcam": tc.XGradCAM}
        table.update(theirs(case, "torchcam", classes, torchcam_maps))
    except ImportError as error:
        print(f"torchcam: left out, {error}", file=sys.stderr)
    try:
        without_torchvision()
        import pytorch_grad_cam as pg

        classes = {
            "gradcam": pg.GradCAM,
            "gradcam++": pg.GradCAMPlusPlus,
            "hirescam": pg.HiResCAM,
            "layercam": pg.LayerCAM,
            "xgradcam": pg.XGradCAM,
            "eigengradcam": pg.EigenGradCAM,
        }
        table.update(theirs(case, "pytorch-grad-cam", classes, grad_cam_maps))
    except ImportError as error:
        print(f"pytorch-grad-cam: left out, {error}", file=sys.stderr)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Whose maps find the forgery? Side by side on the embedded detector.")
    parser.add_argument("--data", type=Path, required=True, help="made by examples/make_demo_data.py")
    parser.add_argument("--frames", type=int, default=100, help="detected fakes, spread over the dataset")
    arguments = parser.parse_args()
    case = load_case(arguments.data.resolve(), arguments.frames)
    count, area = int(case.samples.masked.sum()), float(case.samples.masks.float().mean())
    print(f"{count} detected fakes, masks cover {100 * area:.1f} % of the image; pointing game / energy in mask\n")
    print("| library | method | site | " + " | ".join(case.blocks) + " |")
    print("|---|---|---|" + "---|" * len(case.blocks))
    for row, cells in {**ours(case), **peers(case)}.items():
        print(f"| {row} | " + " | ".join(cells[block] for block in case.blocks) + " |", flush=True)


if __name__ == "__main__":
    main()
