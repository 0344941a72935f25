"""The balanced rule of clips by hand, in float64; and what each frame of a token that covers several has made of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from tests.clips.test_engine import RESIDUAL, explain, read_and_gradient, tube_tokens
from tests.clips.towers import FRAMES, PATCH, SIZE, SMALL, clips_of_noise, tower

WEIGHTS = {
    "hirescam": lambda G: G,
    "layercam": lambda G: G.clamp(min=0),
    "gradcam": lambda G: G.mean(dim=(3, 4), keepdim=True).expand_as(G),
    "gradcam3d": lambda G: G.mean(dim=(2, 3, 4), keepdim=True).expand_as(G),
}
BALANCED = {"layers": 0, "site": "residual", "backward": "balanced", "target": "fake"}


def hold_constant(model: nn.Module, patch: pytest.MonkeyPatch) -> None:
    """The balanced rule, by hand: scales of norms and weights of attention are constants."""
    model.backbone.config._attn_implementation = "eager"  # type: ignore[union-attr]  # of Hugging Face's model

    def normalised(self: nn.LayerNorm, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + self.eps).sqrt().detach()
        return centred / scale * self.weight + self.bias

    patch.setattr(nn.LayerNorm, "forward", normalised)
    patch.setattr(F, "softmax", lambda x, dim, **how: torch.softmax(x, dim).detach())
    patch.setattr(Tensor, "softmax", lambda x, dim: torch.softmax(x, dim).detach())


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some versions of transformers compute attention's weights in float32, whatever the model is in."""
    monkeypatch.setattr(F, "softmax", lambda x, dim, **how: torch.softmax(x, dim))


@pytest.mark.parametrize("method", WEIGHTS)
@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("family", RESIDUAL)
def test_the_rule_by_hand(family: str, block: int, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a block attends in time and in space by turns. Of VideoMAE's first block: two frames of a token."""
    model, clips = tower(family), clips_of_noise()
    found = explain(model, clips, method=method, **{**BALANCED, "layers": block}).maps.only.signed
    hold_constant(model, monkeypatch)
    module, layout = RESIDUAL[family]
    A, G = map(layout, read_and_gradient(model, clips, module.replace(".1", f".{block}"), True))
    expected = (WEIGHTS[method](G) * A).sum(1)
    if found.shape[1] != expected.shape[1]:
        assert (family, block) == ("videomae", 0)
        found = found[:, ::2] + found[:, 1::2]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11 * float(expected.abs().max()))


def own_of_each_frame(model: nn.Module, clips: Tensor, weights: Tensor) -> Tensor:
    """(B, T, h, w): Σ over the pixels of a cell of pixel × gradient, of the score Σ weights × token."""
    pixels = clips.clone().requires_grad_()
    tokens = tube_tokens_of(model, pixels)
    (gradient,) = torch.autograd.grad((tokens * weights).sum(), pixels)
    cells = (pixels * gradient).sum(2).detach()
    return F.avg_pool2d(cells, PATCH) * PATCH**2


def tube_tokens_of(model: nn.Module, pixels: Tensor) -> Tensor:
    """What the patch embedding makes of clips, (B, C, t, h, w)."""
    projection: Any = model.get_submodule("backbone.embeddings.patch_embeddings.projection")
    found: Tensor = projection(pixels.transpose(1, 2))
    return found


@pytest.mark.parametrize("method", WEIGHTS)
def test_a_frame_has_its_pixels_share(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, clips = tower("videomae"), clips_of_noise()
    found = explain(model, clips, method=method, **BALANCED).maps.only.signed
    hold_constant(model, monkeypatch)
    A, G = map(tube_tokens, read_and_gradient(model, clips, "backbone.encoder.layer.0", True))
    steps = (WEIGHTS[method](G) * A).sum(1)
    own = own_of_each_frame(model, clips, WEIGHTS[method](G))
    rest = (steps - own[:, ::2] - own[:, 1::2]) / 2
    expected = own + rest.repeat_interleave(2, dim=1)
    assert found.shape == (2, FRAMES, SIZE // PATCH, SIZE // PATCH)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11 * float(expected.abs().max()))
    torch.testing.assert_close(found[:, ::2] + found[:, 1::2], steps)


@pytest.mark.parametrize(
    "other",
    [{"layers": 1}, {"site": "layer_norm1"}, {"backward": "plain"}, {"method": "gradcam++"}, {"method": "xgradcam"}],
)
def test_elsewhere_a_step_is_two_frames(other: dict[str, Any]) -> None:
    how = {"method": "hirescam", **BALANCED, **other}
    assert explain(tower("videomae"), clips_of_noise(), **how).maps.only.signed.shape[1] == FRAMES // 2


def test_a_frame_that_is_in_no_token() -> None:
    """Of five frames VideoMAE reads four: a step stays two frames, and the fifth belongs to the nearest."""
    model = tower("videomae")
    sizes = transformers.VideoMAEConfig(**{**SMALL, "num_frames": FRAMES + 1})
    model.backbone = transformers.VideoMAEModel(sizes).double().eval()
    clips = torch.randn(2, FRAMES + 1, 3, SIZE, SIZE, dtype=torch.float64)
    found = explain(model, clips, method="hirescam", **BALANCED)
    assert found.maps.only.signed.shape[1] == FRAMES // 2 and found.heatmap.shape[1] == FRAMES + 1


@pytest.mark.parametrize("frame", range(FRAMES))
def test_the_frame_that_decides_is_hottest(frame: int) -> None:
    """Of a clip that is dark but for one frame, that frame has all of its token that is not shared."""
    model, clips = tower("videomae"), torch.zeros(1, FRAMES, 3, SIZE, SIZE, dtype=torch.float64)
    clips[:, frame] = clips_of_noise(1)[:, frame]
    found = explain(model, clips, method="hirescam", **BALANCED).maps.only.signed[0]
    other = found[frame ^ 1]
    assert not torch.equal(found[frame], other)
    for t in {*range(FRAMES)} - {frame, frame ^ 1}:
        assert torch.equal(found[t], found[t ^ 1]), "both are dark"
