"""Which map of clips is drawn, where a call leaves it open: tried on clips in which the evidence is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.clips.towers import clips_of_noise, tower
from utils.gradcam import Recipe, choose, explain
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.explaining.mixin import GradCAMMixin

PLACE = (2, 1, 3)  # the frame, row and column of the only cell that is read


class OneCell(nn.Module):
    """Brightness of every cell of 4 × 4 × 4, of which one is read, and a dim one by each other channel."""

    def __init__(self) -> None:
        super().__init__()
        patches = nn.Conv3d(3, 8, (1, 8, 8), (1, 8, 8), bias=False)
        self.cells = nn.Sequential(patches, nn.ReLU())
        self.head = nn.Linear(8 * 64, 2)
        with torch.no_grad():
            patches.weight.fill_(1 / 192)
            self.head.weight.zero_()
            self.head.bias.zero_()
            t, row, column = PLACE
            self.head.weight.view(2, 8, 4, 4, 4)[1, :, t, row, column] = 3
            self.head.bias[1] = -3

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.head(self.cells(clips.transpose(1, 2)).flatten(1))
        return logits


def bright_clips(count: int) -> Tensor:
    """The cell that is read is bright in every clip, and the upper half of its frame is brighter."""
    clips = 0.1 * torch.rand(count, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    t, row, column = PLACE
    clips[:, t, :, :8] += 2
    clips[:, t, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 1
    return clips


class ClipDetector(GradCAMMixin):
    """The same as a detector of the library."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.backbone = OneCell()
        keys = {"gradcam_enabled": True, "video_mode": True, "clip_size": 4, "resolution": 32}
        self.init_gradcam({**keys, **(config or {})})

    def forward(self, data: dict[str, Tensor], inference: bool = False) -> dict[str, Tensor]:
        logits = self.backbone(data["image"])
        return {"cls": logits, "prob": logits.softmax(dim=1)[:, 1], "feat": logits}


def hottest(maps: Tensor) -> set[tuple[int, ...]]:
    return {tuple(int(i) for i in (one == one.max()).nonzero()[0]) for one in maps}


def test_the_map_that_finds_the_cell_is_chosen() -> None:
    """Grad-CAM's mean over space is hottest in another place of the frame wherever that place is brighter."""
    model, clips = OneCell(), bright_clips(6)
    plain = explain(model, clips, method="gradcam", target="fake", clip_layout="btchw")
    assert all(place[:2] == (2, 0) for place in hottest(plain.maps.only.raw))
    found = explain(model, clips, method="auto", target="fake", clip_layout="btchw")
    assert found.choice is not None and found.choice.state == "chosen" and found.choice.images == 6
    assert hottest(found.maps.only.raw) == {PLACE} and found.made[0].recipe.method in ("hirescam", "layercam")
    assert choose(model, [clips[:4], clips[4:]], clip_layout="btchw").method == found.made[0].recipe.method


def test_the_real_clips_fill_the_cells_where_they_are_known() -> None:
    """As dark as the rest where the fake is bright, so that only the cell that is read matters."""
    model, clips = OneCell(), bright_clips(6)
    reals = clips.clone()
    reals[:, PLACE[0], :, 8 * PLACE[1] : 8 * PLACE[1] + 8, 8 * PLACE[2] : 8 * PLACE[2] + 8] -= 1
    batch = {"image": clips, "paired_real": reals}
    detector = ClipDetector({"gradcam_method": "auto", "gradcam_layers": "auto"}).eval()
    choice = detector.calibrate_gradcam(batch)
    assert choice.fills == ("paired real",) and choice.images == 6 and choice.used.method in ("hirescam", "layercam")
    (row,) = [row for row in choice.rows if row.candidate == choice.used]
    with torch.no_grad():
        drop = (model(clips) - model(reals))[:, 1].mean().item()
    assert row.fall == pytest.approx(drop, rel=1e-4)
    found = detector.explain(batch, target="fake")
    (checks,) = found.check().values()
    assert [check.fall for check in checks] == pytest.approx([drop] * 6, rel=1e-4)
    with pytest.raises(InputError, match="give the real clips in the shape of the clips"):
        detector.explain({"image": clips, "paired_real": reals[:, :2]})


@pytest.mark.parametrize(
    ("named", "kept"),
    [
        ({"layers": "cells.0"}, "layers"),
        ({"layers": ["cells.0", "cells"]}, "layers"),
        ({"backward": "plain", "layers": "cells.1"}, "backward"),
    ],
)
def test_what_is_named_is_kept(named: dict[str, Any], kept: str) -> None:
    found = explain(OneCell(), bright_clips(6), method="auto", target="fake", clip_layout="btchw", **named)
    recipe = found.made[0].recipe
    wanted = named[kept]
    assert getattr(recipe, kept) == (
        wanted if kept == "backward" else tuple([wanted] if isinstance(wanted, str) else wanted)
    )


@pytest.mark.parametrize("method", ["gradcam", "gradcam3d", "layercam", "gradcam++"])
def test_a_named_method_is_kept_where_layers_are_chosen(method: str) -> None:
    clips = clips_of_noise(6)
    recipe = choose(tower("videomae"), clips, recipe=Recipe(method, "auto"), target="fake")
    assert recipe.method == method and recipe.layer.startswith("encoder.layer.")


def test_calibrate_keeps_what_it_chose() -> None:
    detector, clips = (
        ClipDetector({"gradcam_method": "auto", "gradcam_layers": "auto"}).eval(),
        bright_clips(6),
    )
    choice = detector.calibrate_gradcam([{"image": clips[:2]}, {"image": clips[2:]}])
    assert choice.state == "chosen" and choice.images == 6
    maps = detector.explain({"image": clips}, target="fake").maps.only
    assert hottest(maps.raw) == {PLACE}
    named = ClipDetector({"gradcam_method": "gradcam"}).eval()
    assert named.calibrate_gradcam({"image": clips}).state == "named"
    assert named.explain({"image": clips}).made[0].recipe.method == "gradcam"


@pytest.mark.parametrize(
    ("clips", "says"),
    [
        ([], "empty"),
        ([torch.rand(2, 4, 3, 32, 32), torch.rand(2, 5, 3, 32, 32)], "give clips of one length and size"),
        ([torch.full((2, 4, 3, 32, 32), torch.nan)], "NaN or infinite pixels"),
    ],
)
def test_clips_that_cannot_be_tried_are_one_line(clips: list[Tensor], says: str) -> None:
    with pytest.raises(InputError, match=says):
        choose(OneCell(), clips, clip_layout="btchw")
