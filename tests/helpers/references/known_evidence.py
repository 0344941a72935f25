"""A detector whose evidence is known: one corner of the image decides, and another patch only looks as if it did."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers.datasets import DataTree, make_data_tree
from tests.helpers.detectors import BLOCKS, PATCH, PIXELS, tiny_config

GRID = PIXELS // PATCH
EVIDENCE, DECOY = (0, 3), (2, 0)  # row and column of a patch: the one that is read, and a brighter one that is not
REAL_LEVEL, FAKE_LEVEL, DECOY_LEVEL = 120, 196, 250  # grey levels of these patches

# Channels of the residual stream.
MARKER, CONTENT, RESULT, HIGH, LOW, TRACE = 0, 1, 2, 3, 4, 5
STEEPNESS = 60.0


def evidence_detector() -> CLIPDetectorWithGradCAM:
    """Its margin fake - real grows with the mean brightness of the patch EVIDENCE, and depends on nothing else.

    A token holds a constant marker of whether it is that patch, and its patch's brightness. In the last block every
    token attends to the marked one alone and takes over its brightness, and the head reads that from the CLS token. The
    other blocks add a trace to a channel that nothing reads, so that no gradient is exactly zero. Two channels of large
    constants make each LayerNorm nearly linear. The decision lies a little below FAKE_LEVEL, so that a small change of
    the evidence turns it.
    """
    model = CLIPDetectorWithGradCAM(tiny_config())
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items() if value.is_floating_point()}
    for name in state:
        if "norm" in name and name.endswith("weight"):
            state[name].fill_(1)
    state["backbone.embeddings.patch_embedding.weight"][CONTENT] = 1 / (3 * PATCH**2)
    position = state["backbone.embeddings.position_embedding.weight"]
    position[:, HIGH], position[:, LOW], position[:, MARKER] = 6, -6, -3
    position[1 + EVIDENCE[0] * GRID + EVIDENCE[1], MARKER] = 3
    for block in range(BLOCKS):
        attention = f"backbone.encoder.layers.{block}.self_attn."
        state[attention + "v_proj.weight"][0, CONTENT] = 1
        if block == BLOCKS - 1:
            state[attention + "q_proj.bias"][:: 32 // 4] = 10  # the first channel of each head
            state[attention + "k_proj.weight"][:: 32 // 4, MARKER] = 1
            state[attention + "out_proj.weight"][RESULT, 0] = 1
        else:
            state[attention + "out_proj.weight"][TRACE, 0] = 0.01
    state["head.weight"][0, RESULT], state["head.weight"][1, RESULT] = -STEEPNESS, STEEPNESS
    model.load_state_dict(state, strict=False)
    with torch.no_grad():
        real, fake = (
            model.eval()({"image": normalised(flat_image(level))})["cls"][0, 1] for level in (185, FAKE_LEVEL)
        )
        model.head.bias[:] = torch.tensor([1.0, -1.0]) * (real + fake) / 2
    return model.eval()


def flat_image(level: int, ground: int = 128) -> np.ndarray:
    """(H, W, 3) uint8: grey, the patch EVIDENCE at `level`."""
    image = np.full((PIXELS, PIXELS, 3), ground, np.uint8)
    image[patch(EVIDENCE)] = level
    return image


def normalised(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 → (1, 3, H, W) as the detector takes it."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def patch(place: tuple[int, int]) -> tuple[slice, slice]:
    """The pixels of a patch."""
    row, column = place
    return slice(row * PATCH, (row + 1) * PATCH), slice(column * PATCH, (column + 1) * PATCH)


def evidence_tree(folder: Path, masked: tuple[int, int] | None, videos: int = 24) -> DataTree:
    """A test set for that detector, one frame a video: noise with a bright decoy, and evidence in the fakes.

    `masked`: the patch that the fakes' masks mark, whether or not it is the evidence; None writes no masks.
    """
    folder.mkdir(parents=True)
    torch.save(evidence_detector().state_dict(), folder / "evidence.pth")
    tree = make_data_tree(folder / "data", folder / "evidence.pth", videos, 1, gradcam_layers=["encoder.layers.3"])
    rng = np.random.default_rng(3)
    for label, level in (("toy_Real", REAL_LEVEL), ("toy_Fake", FAKE_LEVEL)):
        for path in tree.frames[label]:
            image = rng.integers(124, 133, (PIXELS, PIXELS, 3), dtype=np.uint8)
            image[patch(DECOY)] = DECOY_LEVEL
            image[patch(EVIDENCE)] = level
            cv2.imwrite(str(path), image)
    if masked is not None:
        mask = np.zeros((PIXELS, PIXELS), np.uint8)
        mask[patch(masked)] = 255
        for path in tree.frames["toy_Fake"]:
            place = Path(str(path).replace("/frames/", "/masks/"))
            place.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(place), mask)
    return tree
