"""What lies between a device and its work: operators and bytes are counted, and what is kept with a model stays true."""

from __future__ import annotations

import copy
import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.overhead import ARCHITECTURE, BATCH, PEER, contenders, narrow_bench, operators
from tests.helpers.detectors import images as pictures
from tests.helpers.detectors import spread, tiny_detector
from tests.helpers.model_state import assert_same_state, state_of
from tests.helpers.saved_bytes import saved_bytes
from utils.gradcam import explain
from utils.gradcam_kit.engine import hooks
from utils.gradcam_kit.engine.backward import balanced

FOUR = [f"encoder.layers.{i}" for i in (23, 20, 15, 10)]
BALANCED: dict[str, Any] = {"method": "hirescam", "site": "residual", "backward": "balanced", "completeness": False}
PATCH, HEADS, SIDE = ARCHITECTURE["patch_size"], ARCHITECTURE["num_attention_heads"], 4


@pytest.fixture
def as_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thresholds that users have, which other tests put at 0."""
    for module, name, value in (
        (hooks, "PATH_WORTH", 2**20),
        (hooks, "GELU_WORTH", 2**15),
        (balanced, "P_WORTH", 2**16),
    ):
        monkeypatch.setattr(module, name, value)


def deep_detector(dtype: torch.dtype = torch.float32) -> Any:
    model: Any = narrow_bench().detector
    return model.to(dtype)


# -------------------------------------------------------------------------------------------------------------- counted


def test_no_more_operators_than_torchcam(as_it_pays: None) -> None:
    """For four layers of 24 blocks, and for the last block at most an eighth beyond the plain forward pass."""
    runs = contenders(narrow_bench())
    for run in runs.values():
        run()
    counts = {name: operators(run) for name, run in runs.items()}
    assert counts["ours, four layers"] <= counts[PEER]
    assert counts["ours, four layers, balanced"] <= counts[PEER]
    assert counts["ours, last block alone"] <= 1.125 * counts["plain forward"]


def test_four_layers_take_hardly_more_operators_than_one_as_deep(as_it_pays: None) -> None:
    """What follows the backward pass is done once for all layers."""
    bench = narrow_bench()
    explain = bench.detector.explain
    deepest = operators(lambda: explain({"image": bench.image}, layers=bench.names[-1:], target="fake"))
    four = operators(lambda: explain({"image": bench.image}, layers=bench.names, target="fake"))
    assert four - deepest <= 3 * 8


@pytest.mark.parametrize(
    ("options", "layers", "most"),
    [({}, FOUR, 0.303), ({}, FOUR[:1], 0.0091), (BALANCED, FOUR, 0.148), (BALANCED, FOUR[:1], 0.0037)],
)
def test_no_more_is_kept_for_the_backward_pass(options: dict[str, Any], layers: list[str], most: float) -> None:
    """As shares of what a plain pass with gradients keeps; version 1.3.0 kept as much."""
    model, image = deep_detector(), pictures(BATCH)
    whole = saved_bytes(model, lambda: model({"image": image}))
    for _ in range(2):
        kept = saved_bytes(model, lambda: model.explain({"image": image}, layers=layers, target="fake", **options))
        assert kept <= most * whole, kept / whole


# ----------------------------------------------------------------------------------------------------------- the values


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("rule", ["plain", "balanced"])
def test_maps_are_those_of_plain_autograd(rule: str, dtype: torch.dtype, close: float, as_it_pays: None) -> None:
    """Against a tower written for the tests, without any module or hook, in the same precision; logits to the bit."""
    model, image = deep_detector(dtype), pictures(BATCH).to(dtype)
    with torch.no_grad():
        plain = model({"image": image})["cls"]
    options = BALANCED if rule == "balanced" else {"method": "gradcam"}
    for _ in range(3):  # the first pass of a tower looks, the others rely on it
        found = model.explain({"image": image}, layers=FOUR, target="fake", **options)
        assert torch.equal(found.logits, plain)
        tokens = gradients(model, image, rule == "balanced")
        for name in FOUR:
            A, G = tokens[int(name.rpartition(".")[2])]
            weight = G if rule == "balanced" else G.mean(dim=(2, 3), keepdim=True)
            expected = (weight * A).sum(dim=1)
            error = (found.layers[name].signed - expected).abs().amax() / expected.abs().amax()
            assert error <= close, (name, float(error))


def gradients(model: Any, image: Tensor, constant: bool) -> list[tuple[Tensor, Tensor]]:
    """Of every block (B, C, 4, 4): what it reads, or that behind its first norm, and ∂fake/∂it, by autograd alone.

    `constant`: by the balanced rule, for which what it holds is detached here by hand; then of the residual stream.
    """
    tower = model.backbone
    held: Callable[[Tensor], Tensor] = torch.Tensor.detach if constant else lambda value: value

    def norm(module: Any, x: Tensor) -> Tensor:
        if not constant:
            return F.layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps)
        deviation = (x.var(dim=-1, unbiased=False, keepdim=True) + module.eps).sqrt().detach()
        return (x - x.mean(dim=-1, keepdim=True)) / deviation * module.weight + module.bias

    def apart(x: Tensor) -> Tensor:
        return x.unflatten(2, (HEADS, -1)).transpose(1, 2)

    x = F.conv2d(image, tower.embeddings.patch_embedding.weight, stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([tower.embeddings.class_embedding.expand(len(x), 1, -1), x], dim=1)
    x = norm(tower.pre_layrnorm, x + tower.embeddings.position_embedding.weight)
    read = []
    for block in tower.encoder.layers:
        normed = norm(block.layer_norm1, x)
        read.append(x if constant else normed)
        attention = block.self_attn
        q, k, v = (apart(part(normed)) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
        weights = (held(q) @ held(k).transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1)
        x = x + attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
        inner = block.mlp.fc1(norm(block.layer_norm2, x))
        x = x + block.mlp.fc2(inner * torch.sigmoid(1.702 * inner))
    score = model.head(norm(tower.post_layernorm, x[:, 0]))[:, 1].sum()
    found = torch.autograd.grad(score, read)
    return [
        tuple(one.detach()[:, 1:].transpose(1, 2).unflatten(2, (SIDE, SIDE)) for one in pair)
        for pair in zip(read, found, strict=True)
    ]


# ------------------------------------------------------------------------------------------ what is kept stays the truth


@pytest.mark.parametrize("options", [{}, BALANCED], ids=["plain", "balanced"])
def test_a_model_whose_modules_are_exchanged_is_looked_at_anew(options: dict[str, Any]) -> None:
    """Also where a block comes to need what no other block did."""

    class Cosine(nn.Module):
        """A norm that no module of PyTorch's is."""

        def forward(self, x: Tensor) -> Tensor:
            return 5 * F.normalize(x, dim=-1)

    model, image = tiny_detector(), {"image": pictures(3)}
    layers = ["encoder.layers.1"]
    for change in (
        lambda block: setattr(block, "layer_norm2", Cosine()),
        lambda block: setattr(block.mlp, "fc1", spread(nn.Linear(32, 64), seed=5)),
        lambda block: setattr(block.mlp, "activation_fn", nn.SiLU()),
    ):
        model.explain(image, layers=layers, target="fake", **options)
        change(model.backbone.encoder.layers[2])
        fresh = copy.deepcopy(model)  # knows nothing
        found, expected = (one.explain(image, layers=layers, target="fake", **options) for one in (model, fresh))
        assert torch.equal(found.maps.signed, expected.maps.signed) and found.maps.signed.any()


@pytest.mark.parametrize("options", [{}, BALANCED], ids=["plain", "balanced"])
@pytest.mark.parametrize("where", ["encoder.layers.2.mlp", "encoder.layers.0", "post_layernorm"])
def test_the_model_is_as_found_after_an_error_inside(
    where: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first pass and in a later one, within blocks and behind them; the next call is not impressed."""
    model, image = tiny_detector(), {"image": pictures(2)}
    expected = copy.deepcopy(model).explain(image, layers=[1], target="fake", **options).maps.signed
    module = model.backbone.get_submodule(where)
    for _ in range(2):
        before, usual = state_of(model), (F.scaled_dot_product_attention, torch.overrides._get_current_function_mode())

        def fail(*given: Any, **named: Any) -> Any:
            raise ZeroDivisionError

        with monkeypatch.context() as patched:
            patched.setattr(module, "forward", fail)
            with pytest.raises(ZeroDivisionError):
                model.explain(image, layers=[1], target="fake", **options)
        assert_same_state(before, state_of(model))
        assert (F.scaled_dot_product_attention, torch.overrides._get_current_function_mode()) == usual
        assert not any("forward" in vars(one) for one in model.modules())
        assert torch.equal(model.explain(image, layers=[1], target="fake", **options).maps.signed, expected)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)).eval()


@pytest.mark.parametrize(
    "options",
    [{}, BALANCED, {"method": "legrad"}, {"method": "rollout"}, {"layers": [0, 2]}, "network"],
    ids=["plain", "balanced", "legrad", "rollout", "layers", "network"],
)
def test_a_prediction_in_another_thread_meets_no_hook(options: Any) -> None:
    """One runs to its end, with the right logits, within every run of every part while an image is explained."""
    build, options = (small_network, {}) if options == "network" else (tiny_detector, options)
    model, pixels = build(), pictures(2)
    given = pixels if build is small_network else {"image": pixels}
    predicted: list[Any] = []

    def predict() -> None:
        with torch.no_grad():
            found = model(given)
        predicted.append(found if isinstance(found, Tensor) else found["cls"])

    predict()
    logits = predicted.pop()
    expected = explain(build(), pixels, **options).maps
    explains, passes = threading.get_ident(), list[nn.Module]()

    def beside(module: nn.Module, inputs: Any) -> None:
        if threading.get_ident() == explains:
            passes.append(module)
            thread = threading.Thread(target=predict)
            thread.start()
            thread.join()

    parts = [module for module in model.modules() if not [*module.children()]]
    for module in parts:
        module.register_forward_pre_hook(beside, prepend=True)
    for _ in range(2):  # the second time with what the first has learnt of the model
        found = explain(model, pixels, **options).maps
        assert all(torch.equal(found[name].signed, expected[name].signed) for name in expected)
    assert len(predicted) == len(passes) > len(parts)
    assert all(torch.equal(one, logits) for one in predicted)


def test_a_copy_and_a_fork_explain_as_the_model_does() -> None:
    torch.set_num_threads(1)
    model, image = tiny_detector(), {"image": pictures(2)}
    expected = model.explain(image, layers=[1], target="fake", **BALANCED).maps.signed
    model.explain(image, layers=[1], target="fake", **BALANCED)
    again = copy.deepcopy(model)
    with torch.no_grad():
        again.backbone.encoder.layers[3].mlp.fc1.weight.zero_()  # its own, not the first one's
    assert not torch.equal(again.explain(image, layers=[1], target="fake", **BALANCED).maps.signed, expected)
    assert torch.equal(model.explain(image, layers=[1], target="fake", **BALANCED).maps.signed, expected)
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def child() -> None:
        results.put(model.explain(image, layers=[1], target="fake", **BALANCED).maps.signed.tolist())

    process = context.Process(target=child)
    process.start()
    found = results.get(timeout=60)
    process.join()
    assert torch.equal(torch.tensor(found), expected)
