"""Maps of clips against float64 formulas written here, family by family, and where a token lies in time and space."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import matplotlib
import pytest
import torch
import transformers
from torch import Tensor, nn

from tests.clips.towers import FRAMES, PATCH, SIZE, Folded, Thumbnail, Volume, clips_of_noise, tower
from utils.gradcam import InputError, Recipe
from utils.gradcam import explain as explain_any
from utils.gradcam_kit.engine.clips.families import clip_grid, clip_tower_of
from utils.gradcam_kit.engine.clips.grid import ClipShape
from utils.gradcam_kit.explaining.clips.explanation import ClipExplanation
from utils.gradcam_kit.explaining.explanation import DrawStyle

SIDE = SIZE // PATCH
# Family → the layer explained, the module and whether its input is meant; then tensor → (B, C, t, h, w), by hand.
Layout = Callable[[Tensor], Tensor]


def explain(model: nn.Module, clips: Tensor, **options: Any) -> ClipExplanation:
    """The public call, which gives clips an explanation of their own."""
    found = explain_any(model, clips, **options)
    assert isinstance(found, ClipExplanation), "of clips"
    return found


def as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def frame_rows(tensor: Tensor) -> Tensor:
    """(B·T, C, h, w): the frames of a clip beside each other."""
    return torch.stack([tensor[i : i + FRAMES].transpose(0, 1) for i in range(0, len(tensor), FRAMES)])


def frame_tokens(tensor: Tensor) -> Tensor:
    """(B·T, 1 + patches, C), with what X-CLIP puts behind the patches."""
    patches = tensor[:, 1 : 1 + SIDE * SIDE].transpose(1, 2).reshape(len(tensor), -1, SIDE, SIDE)
    return frame_rows(patches)


def tube_tokens(tensor: Tensor) -> Tensor:
    """(B, t·h·w, C), tubes of two frames, frame after frame."""
    clips = torch.empty(len(tensor), tensor.shape[2], FRAMES // 2, SIDE, SIDE, dtype=tensor.dtype)
    for t in range(FRAMES // 2):
        for row in range(SIDE):
            for column in range(SIDE):
                clips[:, :, t, row, column] = tensor[:, t * SIDE * SIDE + row * SIDE + column]
    return clips


def patch_tokens(tensor: Tensor) -> Tensor:
    """(B, 1 + h·w·T, C), patch after patch with its frames beside each other."""
    clips = torch.empty(len(tensor), tensor.shape[2], FRAMES, SIDE, SIDE, dtype=tensor.dtype)
    for t in range(FRAMES):
        for row in range(SIDE):
            for column in range(SIDE):
                clips[:, :, t, row, column] = tensor[:, 1 + (row * SIDE + column) * FRAMES + t]
    return clips


def thumbnail_tokens(tensor: Tensor) -> Tensor:
    """(B, H·W, C) of a 2 × 2 picture of frames."""
    whole = int(tensor.shape[1] ** 0.5)
    side = whole // 2
    picture = tensor.transpose(1, 2).reshape(len(tensor), -1, whole, whole)
    cut = [(0, 0), (0, side), (side, 0), (side, side)]
    return torch.stack([picture[:, :, top : top + side, left : left + side] for top, left in cut], dim=2)


# transformers 4 has one module more around the tower.
XCLIP = "backbone.vision_model.encoder" if transformers.__version__ < "5" else "backbone.encoder"
CASES: dict[str, tuple[str, str, bool, Layout]] = {
    "volume": ("last", "last", False, as_it_is),
    "folded": ("frames", "frames", False, frame_rows),
    "videomae": ("encoder.layer.1", "backbone.encoder.layer.1.layernorm_before", False, tube_tokens),
    "timesformer": ("encoder.layer.1", "backbone.encoder.layer.1.layernorm_before", False, frame_tokens),
    "xclip": ("encoder.layers.1", f"{XCLIP}.layers.1.layer_norm1", False, frame_tokens),
    "thumbnail": (
        "encoder.layers.1.blocks.1",
        "backbone.encoder.layers.1.blocks.1.layernorm_before",
        False,
        thumbnail_tokens,
    ),
}
RESIDUAL = {
    "videomae": ("backbone.encoder.layer.1", tube_tokens),
    "timesformer": ("backbone.encoder.layer.1", patch_tokens),
    "xclip": (f"{XCLIP}.layers.1", frame_tokens),
}


def read_and_gradient(model: nn.Module, clips: Tensor, module: str, by_input: bool) -> tuple[Tensor, Tensor]:
    """What `module` reads or returns, and the gradient of the fake logits' sum, by a hook of the test's own."""
    kept: list[Tensor] = []

    def keep(value: Any) -> Any:
        tensor = value[0] if isinstance(value, tuple) else value
        kept.append(tensor if tensor.requires_grad else tensor.requires_grad_())
        kept[-1].retain_grad()
        return (kept[-1].clone(), *value[1:]) if isinstance(value, tuple) else kept[-1].clone()

    found = model.get_submodule(module)
    if by_input:
        handle = found.register_forward_pre_hook(lambda _, inputs: keep(inputs))
    else:
        handle = found.register_forward_hook(lambda _, inputs, output: keep(output))
    model(clips)[:, 1].sum().backward()
    handle.remove()
    gradient = kept[0].grad
    assert gradient is not None, "the score depends on it"
    return kept[0].detach(), gradient


FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": lambda A, G: (G.mean(dim=(3, 4), keepdim=True) * A).sum(1),
    "gradcam3d": lambda A, G: (G.mean(dim=(2, 3, 4), keepdim=True) * A).sum(1),
    "hirescam": lambda A, G: (G * A).sum(1),
    "layercam": lambda A, G: (G.clamp(min=0) * A).sum(1),
}


@pytest.mark.parametrize("method", FORMULAS)
@pytest.mark.parametrize("family", CASES)
def test_the_maps_are_the_formula_s(family: str, method: str) -> None:
    model, clips = tower(family), clips_of_noise()
    layer, module, by_input, layout = CASES[family]
    A, G = (layout(tensor) for tensor in read_and_gradient(model, clips, module, by_input))
    expected = FORMULAS[method](A, G)
    found = explain(model, clips, layers=layer, method=method, target="fake", clip_layout="btchw").maps.only
    assert found.signed.shape == expected.shape
    torch.testing.assert_close(found.signed, expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("family", RESIDUAL)
def test_on_the_residual_stream(family: str) -> None:
    model, clips = tower(family), clips_of_noise()
    module, layout = RESIDUAL[family]
    A, G = (layout(tensor) for tensor in read_and_gradient(model, clips, module, True))
    found = explain(model, clips, layers=-1, method="layercam", site="residual", target="fake").maps.only
    torch.testing.assert_close(found.signed, FORMULAS["layercam"](A, G), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["videomae", "timesformer", "xclip", "thumbnail"])
def test_a_token_lies_where_its_block_of_pixels_is(family: str) -> None:
    """One block of one frame is changed: of what the first block reads, its own cell alone changes."""
    model = tower(family)
    kind = clip_tower_of(model)
    read: list[Tensor] = []
    first = kind.named[kind.blocks[0]]
    handle = first.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].detach()))
    for frame, row, column in [(0, 0, 1), (1, 2, 3), (2, 3, 0), (3, 1, 2)]:
        clips = clips_of_noise(2)
        changed = clips.clone()
        changed[:, frame, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] += 1
        with torch.no_grad():
            model(clips), model(changed)
        before, after = read[-2:]
        grid = clip_grid(kind, kind.blocks[0], before, ClipShape(2, FRAMES, SIZE, SIZE))
        moved = grid.to_clip(after - before, 2).abs().sum(1) > 1e-9
        assert moved.nonzero().tolist() == [[clip, frame * grid.times // FRAMES, row, column] for clip in range(2)]
    handle.remove()


def test_a_volume_keeps_time_and_place() -> None:
    """A changed block reaches the cells around it, and no others: five frames, and 15 pixels each way."""
    model, clips = tower("volume"), clips_of_noise(1).repeat(1, 4, 1, 1, 1)
    seen = explain(model, clips, layers="first", clip_layout="btchw").maps.only
    assert tuple(seen.signed.shape) == (1, 16, 16, 16)
    volumes: list[Tensor] = []
    handle = model.get_submodule("first").register_forward_hook(
        lambda _, inputs, output: volumes.append(output.detach())
    )
    changed = clips.clone()
    changed[:, 9, :, 16:20, 8:12] += 1
    with torch.no_grad():
        model(clips), model(changed)
    handle.remove()
    times, rows, columns = (volumes[1] - volumes[0])[0].abs().sum(0).nonzero().T
    assert {*times.tolist()} == {8, 9, 10} and 7 <= int(rows.min()) <= int(rows.max()) <= 10
    assert 3 <= int(columns.min()) <= int(columns.max()) <= 6


@pytest.mark.parametrize("family", CASES)
def test_a_batch_is_its_clips_one_by_one(family: str) -> None:
    model, clips = tower(family), clips_of_noise(3)
    together = explain(model, clips, clip_layout="btchw")
    for i in range(3):
        alone = explain(model, clips[i : i + 1], clip_layout="btchw")
        torch.testing.assert_close(together.logits[i], alone.logits[0])
        torch.testing.assert_close(together.maps.signed[i], alone.maps.signed[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(together.heatmap[i], alone.heatmap[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["gradcam", "gradcam3d", "hirescam"])
def test_frames_add_up_to_the_logit(method: str) -> None:
    """Behind the last volume there is a mean and a linear layer: all frames' shares and the bias are the logit."""
    model, clips = Volume().double().eval(), clips_of_noise()
    found = explain(model, clips, layers="last", method=method, target="fake", clip_layout="btchw")
    torch.testing.assert_close(found.time.sum(1) + model.head.bias[1].detach(), found.logits[:, 1])


def test_of_folded_frames_each_frame_has_its_own_logit() -> None:
    model, clips = Folded().double().eval(), clips_of_noise()
    found = explain(model, clips, method="hirescam", target="fake")
    bias = model.fc.bias
    alone = torch.stack([explain(model, clips[:, [t, t]], target="fake").logits[:, 1] for t in range(FRAMES)], dim=1)
    torch.testing.assert_close(found.time * FRAMES + bias[1].detach(), alone)


def test_the_logits_of_each_frame_where_their_mean_decides() -> None:
    model, clips = Folded().double().eval(), clips_of_noise()
    found = explain(model, clips)
    with torch.no_grad():
        alone = torch.stack([model(clips[:, t : t + 1]) for t in range(FRAMES)], dim=1)
    torch.testing.assert_close(found.frame_logits(), alone)
    torch.testing.assert_close(found.frame_logits().mean(1), found.logits)
    with pytest.raises(InputError, match="its decision is not the mean of its frames' logits"):
        explain(tower("xclip"), clips).frame_logits()


def test_one_scale_for_a_clip_and_nothing_between_two_frames() -> None:
    found = explain(tower("videomae"), clips_of_noise(), target="fake")
    heat = found.heatmap
    assert heat.shape == (2, FRAMES, SIZE, SIZE) and heat.dtype == torch.float32
    assert heat.flatten(1).amin(1).tolist() == [0, 0] and heat.flatten(1).amax(1).tolist() == [1, 1]
    assert (heat.flatten(2).amax(2).amin(1) < 1).all(), "a colder frame stays colder"
    assert torch.equal(heat[:, 0], heat[:, 1]) and torch.equal(heat[:, 2], heat[:, 3]), "a tubelet is two frames"
    assert not torch.equal(heat[:, 1], heat[:, 2])
    torch.testing.assert_close(found.time.sum(1), found.maps.signed.flatten(1).sum(1))
    assert torch.equal(found.time[:, 0], found.time[:, 1])


def test_frames_are_coloured_as_the_style_says() -> None:
    found = explain(tower("videomae"), clips_of_noise(), target="fake")
    clip, t, y, x = (int(i) for i in (found.heatmap == 1).nonzero()[0])
    plain = found.pixels()[clip, t, :, y, x].float()
    (drawn,) = replace(found, look=DrawStyle(colormap="viridis")).overlay().values()
    viridis_at_1 = 255 * torch.tensor(matplotlib.colormaps["viridis"](1.0)[:3], dtype=torch.float32)
    torch.testing.assert_close(drawn[clip, t, y, x].float(), (plain + viridis_at_1) / 2, atol=1.5, rtol=0)
    (signed,) = replace(found, look=DrawStyle(signed=True)).overlay().values()
    shares = found.maps.signed / found.maps.signed.abs().amax(dim=(1, 2, 3), keepdim=True)
    share = nn.functional.interpolate(shares, size=(SIZE, SIZE), mode="bilinear")[clip, t // 2, y, x]
    assert share > 0.5, "a tubelet is two frames; red is evidence for the score"
    red = torch.lerp(plain, torch.tensor([214.0, 0, 0]), 0.85 * share)
    torch.testing.assert_close(signed[clip, t, y, x].float(), red, atol=1.5, rtol=0)


def test_the_last_stage_of_a_thumbnail_is_not_used() -> None:
    """Its cell lies on several frames, and the stage before has one cell a frame: the default is one earlier."""
    model = Thumbnail().double().eval()
    assert explain(model, clips_of_noise()).recipe.layers == ("encoder.layers.1.blocks.1",)
    with pytest.raises(InputError, match="1 x 1 cells for 2 x 2 frames of a thumbnail: some cells lie on several"):
        explain(model, clips_of_noise(), layers="encoder.layers.3.blocks.0")


def test_logits_are_those_of_a_plain_pass_and_the_model_stays() -> None:
    model, clips = tower("timesformer"), clips_of_noise()
    with torch.no_grad():
        plain = model(clips)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = explain(model, clips, recipes=[Recipe("gradcam"), Recipe("hirescam", layers=0)], target="both")
    assert torch.equal(found.logits, plain) and found.target == ["both", "both"] and len(found.layers) == 4
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Stacked(nn.Module):
    """Frames stacked as channels: nothing behind the first layer belongs to a frame."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.fc = nn.Conv2d(3 * FRAMES, 8, 3, 2, 1), nn.Linear(8, 2)

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(clips.flatten(1, 2)).mean((2, 3)))
        return logits


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "legrad"}, "method 'legrad' is not verified for clips of frames; allowed: gradcam, "),
        ({"layers": "sum"}, "are only for images: name a layer"),
        ({"backward": "both"}, "backward 'both' is only for images: use plain or balanced"),
        ({"clip_layout": "thwc"}, "clip_layout is 'thwc'; allowed: btchw, bcthw"),
        ({"layers": "embeddings.patch_embeddings.projection.x"}, "is not in the detector's tower"),
    ],
)
def test_what_is_not_right_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        explain(tower("timesformer"), clips_of_noise(), **given)


def test_a_model_without_a_cell_for_each_frame_is_refused() -> None:
    with pytest.raises(InputError, match="none of its modules returns activations with a cell for each frame"):
        explain(Stacked().double().eval(), clips_of_noise())


class Probability(Volume):
    """As I3D and FTCN of the hosts: one number, and a sigmoid inside; both are called "cls"."""

    def __init__(self, ends: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(16, 1)
        self.act: nn.Module = nn.Sigmoid() if ends else nn.Identity()

    def forward(self, clips: Tensor) -> Any:
        prob = self.act(super().forward(clips))
        return {"cls": prob, "prob": prob}


def test_the_logit_before_a_sigmoid_is_explained() -> None:
    torch.manual_seed(3)
    model, plain = Probability().double().eval(), Probability(ends=False).double().eval()
    plain.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match="returns probabilities"):
        found = explain(model, clips_of_noise(), method="hirescam")
    expected = explain(plain, clips_of_noise(), method="hirescam")
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.maps.signed, expected.maps.signed)
    torch.testing.assert_close(found.prob_fake, model(clips_of_noise())["cls"][:, 0].detach())


class SlowFastHead(Volume):
    """The head of SlowFast, and so of I3D: pooled, channels last, a dropout, a linear layer."""

    def __init__(self, pool: tuple[int, int, int]) -> None:
        super().__init__()
        self.pool, self.dropout = nn.AvgPool3d(pool, stride=1), nn.Dropout(0.5)
        self.pathways = nn.Identity()

    def forward(self, clips: Tensor) -> Tensor:
        (volume,) = self.pathways([self.last(self.first(clips.transpose(1, 2)))])
        pooled = self.dropout(self.pool(volume).permute(0, 2, 3, 4, 1))
        logits: Tensor = self.head(pooled).mean((1, 2, 3))
        return logits


@pytest.mark.parametrize("pool", [(2, 8, 8), (2, 7, 7), (1, 8, 8)])
def test_what_a_head_has_put_last_is_no_map(pool: tuple[int, int, int]) -> None:
    """`pathways` gives a list, as SlowFast's stages do; it can be named, too."""
    model = SlowFastHead(pool).double().eval()
    found = explain(model, clips_of_noise(), clip_layout="btchw", target="fake")
    assert found.recipe.layers[0] in ("last", "pool") and found.maps.signed.shape[0] == 2
    assert (found.recipe.layers[0] == "pool") is (pool == (2, 7, 7)), "where places are left they are maps"
    named = explain(model, clips_of_noise(), layers="pathways", clip_layout="btchw", target="fake")
    expected = explain(model, clips_of_noise(), layers="last", clip_layout="btchw", target="fake")
    torch.testing.assert_close(named.maps.signed, expected.maps.signed)


def test_three_frames_need_a_layout() -> None:
    clips = clips_of_noise()[:, :3]
    with pytest.raises(InputError, match="clips of 3 frames fit both layouts"):
        explain(Volume().double().eval(), clips)
    assert explain(Volume().double().eval(), clips, clip_layout="btchw").heatmap.shape == (2, 3, SIZE, SIZE)


def test_a_model_that_takes_channels_first() -> None:
    """torchvision's video networks take (B, 3, T, H, W)."""

    class ChannelsFirst(Volume):
        def forward(self, clips: Tensor) -> Tensor:
            return super().forward(clips.transpose(1, 2))

    torch.manual_seed(0)
    model, same = ChannelsFirst().double().eval(), Volume().double().eval()
    same.load_state_dict(model.state_dict())
    torch.testing.assert_close(
        explain(model, clips_of_noise()).maps.signed, explain(same, clips_of_noise()).maps.signed
    )
