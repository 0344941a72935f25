"""Contrast maps, the bank and exchanged tokens, against float64 computations of the test's own."""

from __future__ import annotations

import copy
import itertools
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import utils.gradcam_kit.engine.real.bank as bank_module
from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers.detectors import BLOCKS, images, tiny_detector
from tests.helpers.model_state import assert_same_state, state_of
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.engine.layers import LayerError, compared_blocks, exchanged_block, site_of_layer
from utils.gradcam_kit.engine.real.bank import NEIGHBOURS, TokenBank, nearest_beside, thinned
from utils.gradcam_kit.engine.real.contrast import contrast, neighbourhood_mean, scaled_mean, sharpened
from utils.gradcam_kit.engine.real.exchange import Exchange, seen_at, skippable
from utils.gradcam_kit.engine.recipe import Recipe
from utils.gradcam_kit.explaining.real_tokens import Bank, bank_of, one_of_each_video, token_fill
from utils.gradcam_kit.explaining.subject import Subject, subject_of
from utils.gradcam_kit.judge.choosing import in_batches

SCALED = "scaled"


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_formula() -> None:
    A, G, R = draw(2, 5, 3, 4), draw(2, 5, 3, 4, seed=1), draw(2, 5, 3, 4, seed=2)
    expected = np.zeros((2, 3, 4))
    for b, row, column in np.ndindex(2, 3, 4):
        expected[b, row, column] = sum(float(G[b, c, row, column] * (A - R)[b, c, row, column]) for c in range(5))
    np.testing.assert_allclose(contrast(A, G, R).numpy(), expected, rtol=1e-12)


def test_blocks_are_scaled_to_unit_deviation() -> None:
    loud, quiet = 1000 * draw(2, 3, 3), draw(2, 3, 3, seed=1)
    expected = sum(m.numpy() / m.flatten(1).numpy().std(axis=1)[:, None, None] for m in (loud, quiet)) / 2
    np.testing.assert_allclose(scaled_mean([loud, quiet]).numpy(), expected, rtol=1e-12)
    constant = torch.full((2, 3, 3), 7.0, dtype=torch.float64)
    np.testing.assert_allclose(scaled_mean([constant, quiet]).numpy(), (scaled_mean([quiet]) / 2).numpy())


def test_a_patch_is_drawn_as_far_as_its_neighbours_agree() -> None:
    u = torch.tensor([[[4.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 9.0]]])
    # The corner has itself and three neighbours, the centre itself and eight.
    assert neighbourhood_mean(u)[0, 0, 0] == 1.0 and neighbourhood_mean(u)[0, 1, 1] == pytest.approx(13 / 9)
    # Sharpened, beyond the border counts as 0: the sum of nine, of which five are outside at a corner.
    assert sharpened(u)[0, 0, 0] == pytest.approx(4.0 * (4 / 9) ** 3) and sharpened(u)[0, 2, 2] == pytest.approx(9.0)
    assert sharpened(-u).abs().max() == 0
    lonely = torch.tensor([[[1.0, -5.0], [-5.0, -5.0]]])  # one patch for it, and all its neighbours against it
    assert sharpened(lonely)[0, 0, 0] == 0


def test_sharpening_by_a_loop() -> None:
    u = draw(2, 4, 5)
    expected = np.zeros((2, 4, 5))
    for b, row, column in np.ndindex(2, 4, 5):
        around = [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        mean = sum(float(u[b, r, c]) for r, c in around if 0 <= r < 4 and 0 <= c < 5) / 9
        expected[b, row, column] = max(float(u[b, row, column]), 0.0) * max(mean, 0.0) ** 3
    np.testing.assert_allclose(sharpened(u).numpy(), expected, rtol=1e-12, atol=1e-15)


def nearest_by_hand(tokens: np.ndarray, real: np.ndarray, k: int) -> np.ndarray:
    """tokens (P, C), real (Q, C) → (P, C): the mean of the k of largest correlation over channels."""
    found = []
    for token in tokens:
        likeness = [np.corrcoef(token, other)[0, 1] for other in real]
        found.append(real[np.argsort(likeness)[::-1][:k]].mean(axis=0))
    return np.stack(found)


def test_the_nearest_real_tokens() -> None:
    real = draw(3, 25, 8).half()
    bank = TokenBank({"block": real}, ("a", "b", "c"))
    A = draw(2, 8, 4, 5, seed=1)
    neighbours = bank.nearest("block", A, ["b", "z"])
    found, G = neighbours.mean, draw(2, 8, 4, 5, seed=2)
    assert found.dtype == torch.float64 and found.shape == A.shape
    patches = A.flatten(2).transpose(1, 2).numpy()
    others = real.double().numpy()
    for i, allowed in enumerate(([0, 2], [0, 1, 2])):  # the first image is of video b
        expected = nearest_by_hand(patches[i], others[allowed].reshape(-1, 8), NEIGHBOURS)
        np.testing.assert_allclose(found[i].flatten(1).T.numpy(), expected, rtol=1e-9)
    along = neighbours.along(G)
    assert along.shape == (2, NEIGHBOURS, 4, 5)
    torch.testing.assert_close(along.mean(dim=1), (G * found).sum(dim=1), rtol=1e-9, atol=1e-12)
    with pytest.raises(LayerError, match="the bank has no tokens of layer 'other'; it has those of block"):
        bank.nearest("other", A)


def test_likenesses_are_found_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid of 128 x 128 has 4 thousand million likenesses to a bank; what does not fit is found row by row."""
    real, A = draw(3, 25, 8).half(), draw(2, 8, 4, 5, seed=1)
    at_once = TokenBank({"block": real}, ("a", "b", "c")).nearest("block", A, ["b", "z"]).indices
    sizes: list[int] = []
    topk = Tensor.topk

    def counted(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(self.numel())
        return topk(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "topk", counted)
    monkeypatch.setattr(bank_module, "LIKENESSES", 150)
    few = TokenBank({"block": real}, ("a", "b", "c")).nearest("block", A, ["b", "z"]).indices
    assert torch.equal(few, at_once) and max(sizes) == 150 and len(sizes) == 20


@pytest.mark.parametrize(("rows", "columns", "step"), [(64, 64, 1), (65, 64, 2), (128, 128, 2), (200, 100, 3)])
def test_a_fine_grid_is_thinned_out(rows: int, columns: int, step: int) -> None:
    patches = torch.arange(rows * columns).reshape(1, 1, rows, columns)
    kept = thinned(patches)
    assert kept.shape[2] * kept.shape[3] <= 64 * 64
    assert kept[0, 0].tolist() == [
        [row * columns + column for column in range(0, columns, step)] for row in range(0, rows, step)
    ]


@pytest.fixture(scope="module")
def model() -> CLIPDetectorWithGradCAM:
    return tiny_detector().double()


@pytest.fixture(scope="module")
def subject(model: CLIPDetectorWithGradCAM) -> Subject:
    plain = subject_of(model)
    return replace(plain, bank=bank_of(plain, images(4, seed=9).double(), list("abcd")))


def tokens_and_gradients(model: Any, batch: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """What a block reads and ∂(logit of fake)/∂that, (B, T, C), by autograd on a hook of the test's own."""
    kept: list[Tensor] = []

    def keep(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        leaf = inputs[0].detach().requires_grad_()
        kept.append(leaf)
        return (leaf, *inputs[1:])

    handle = model.backbone.get_submodule(f"encoder.layers.{block}").register_forward_pre_hook(keep)
    try:
        score = model({"image": batch})["cls"][:, 1].sum()
        return kept[0].detach(), torch.autograd.grad(score, kept[0])[0]
    finally:
        handle.remove()


def test_a_contrast_map_of_a_detector(model: CLIPDetectorWithGradCAM, subject: Subject) -> None:
    batch, blocks = images(2).double(), range(BLOCKS - 1)  # the last is not compared
    assert compared_blocks(subject.tower) == tuple(f"encoder.layers.{i}" for i in blocks)
    recipe = Recipe("contrast", SCALED, backward="plain")
    found = subject.capture({"image": batch}, [recipe], "fake").maps(recipe)[SCALED]
    total = np.zeros((2, 4, 4))
    for block in blocks:
        A, G = (of[:, 1:].numpy() for of in tokens_and_gradients(model, batch, block))
        real = torch.cat(
            [tokens_and_gradients(model, images(4, seed=9)[i : i + 1].double(), block)[0] for i in range(4)]
        )
        reals = real[:, 1:].half().double().flatten(0, 1).numpy()
        R = np.stack([nearest_by_hand(of_image, reals, NEIGHBOURS) for of_image in A])
        u = (G * (A - R)).sum(axis=2).reshape(2, 4, 4)
        total += u / u.reshape(2, -1).std(axis=1)[:, None, None] / len(blocks)
    np.testing.assert_allclose(found.signed.numpy(), total, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.raw.numpy(), sharpened(torch.from_numpy(total)).numpy(), rtol=1e-6, atol=1e-9)


def z_by_hand(A: np.ndarray, G: np.ndarray, reals: np.ndarray) -> np.ndarray:
    """tokens and gradients (P, C), real (Q, C) → (P,): in deviations of the k nearest, none below a tenth of the median."""
    excess, deviation = [], []
    for token, g in zip(A, G, strict=True):
        order = np.argsort([np.corrcoef(token, other)[0, 1] for other in reals])[::-1][:NEIGHBOURS]
        along = reals[order] @ g
        excess.append(token @ g - along.mean())
        deviation.append(along.std(ddof=1))
    # torch's median is the lower one of two
    least = 0.1 * np.sort(deviation)[(len(deviation) - 1) // 2]
    return np.array(excess) / (np.array(deviation) + least)


def test_a_standardised_contrast_map_of_a_detector(model: CLIPDetectorWithGradCAM, subject: Subject) -> None:
    batch, layer = images(2).double(), "encoder.layers.1"
    recipe = Recipe("contrast_z", layer, backward="plain")
    found = subject.capture({"image": batch}, [recipe], "fake").maps(recipe)[layer]
    A, G = (of[:, 1:].numpy() for of in tokens_and_gradients(model, batch, 1))
    real = torch.cat([tokens_and_gradients(model, images(4, seed=9)[i : i + 1].double(), 1)[0] for i in range(4)])
    reals = real[:, 1:].half().double().flatten(0, 1).numpy()
    expected = np.stack([z_by_hand(a, g, reals) for a, g in zip(A, G, strict=True)]).reshape(2, 4, 4)
    np.testing.assert_allclose(found.signed.numpy(), expected, rtol=1e-6, atol=1e-9)


def test_both_rules_are_added_at_unit_deviation(subject: Subject) -> None:
    batch = images(2).double()
    recipes = {rule: Recipe("contrast", SCALED, backward=rule) for rule in ("plain", "balanced", "both")}
    maps = {rule: subject.capture({"image": batch}, [one], "fake").maps(one)[SCALED] for rule, one in recipes.items()}
    expected = maps["plain"].signed + maps["balanced"].signed
    torch.testing.assert_close(maps["both"].signed, expected, rtol=1e-10, atol=1e-12)


def test_both_rules_take_one_forward_pass(model: CLIPDetectorWithGradCAM, subject: Subject) -> None:
    runs = []
    handle = model.backbone.register_forward_pre_hook(lambda module, inputs: runs.append(1))
    recipe = Recipe("contrast", SCALED, backward="both")
    captured = subject.capture({"image": images(2).double()}, [recipe], "fake")
    handle.remove()
    assert recipe.backward == "both" and len(runs) == 1
    with torch.no_grad():
        assert torch.equal(captured.prediction["cls"], model({"image": images(2).double()})["cls"])


def test_without_a_bank_contrast_is_refused_in_one_sentence(model: CLIPDetectorWithGradCAM) -> None:
    with pytest.raises(InputError, match=r"there are none: give a bank \(--bank FOLDER, or bank=Bank.of"):
        model.explain(images(1).double(), method="contrast")


def test_a_bank_of_the_images_that_are_called_real(model: CLIPDetectorWithGradCAM) -> None:
    batch, model = images(24, seed=3).double(), copy.deepcopy(model)
    with torch.no_grad():
        logits = model({"image": batch})["cls"]
        model.head.bias[0] -= (logits[:, 0] - logits[:, 1]).median()  # half of them are called real
        logits = model({"image": batch})["cls"]
    real = (logits[:, 0] > logits[:, 1]).nonzero().flatten().tolist()
    assert 0 < len(real) < 24
    bank = Bank.of(model, [batch[:10], batch[10:]])
    assert list(bank.videos) == real[:16]
    block = exchanged_block(subject_of(model).tower)
    tokens, _ = tokens_and_gradients(model, batch[real[:1]], int(block.rpartition(".")[2]))
    torch.testing.assert_close(bank.tokens[block][0], tokens[0, 1:].half())
    with pytest.raises(InputError, match="calls none of the 1 images real"):
        Bank.of(model, batch[[i for i in range(24) if i not in real][:1]])


def test_one_image_of_each_video_first() -> None:
    assert one_of_each_video(["a", "a", "b", "c"]) == [0, 1, 2, 3]
    assert one_of_each_video(["a"] * 20 + ["b"]) == [*range(15), 20]
    assert one_of_each_video(list(range(40))) == list(range(16))


def test_a_bank_runs_no_block_after_the_last_that_is_compared(model: Any, subject: Subject) -> None:
    ran: list[str] = []
    blocks = subject.tower.blocks
    with ExitStack() as hooks:
        for block in blocks:
            handle = subject.tower.named[block].register_forward_hook(lambda *given, block=block: ran.append(block))
            hooks.callback(handle.remove)
        bank_of(subject, images(2).double(), ["a", "b"])
    last = blocks.index(compared_blocks(subject.tower)[-1])
    assert ran == [*blocks[:last], *blocks[:last]]  # it reads that block's input


@pytest.mark.parametrize("skips", [True, False])
def test_exchanged_patches_are_what_a_hook_would_put_there(model: Any, subject: Subject, skips: bool) -> None:
    batch, block = images(3).double(), exchanged_block(subject.tower)
    patches = torch.zeros(3, 4, 4, dtype=torch.bool)
    patches[0, 1, 2] = patches[1, :2] = True
    real = draw(3, 32, 4, 4, seed=5)
    run = partial(subject.predict, {"image": batch})
    site = site_of_layer(subject.tower, block, "residual")
    (seen,) = seen_at(subject.tower, [site], subject.grid(64, 64), run, 3)
    skipped = skippable(subject.tower, block, run) if skips else []
    assert len(skipped) == (subject.tower.blocks.index(block) if skips else 0)
    before = state_of(model)
    with Exchange(seen, real, skipped).made(torch.arange(3), patches), torch.no_grad():
        found = model({"image": batch})["cls"]
    assert_same_state(before, state_of(model))

    def put(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens = inputs[0].clone()
        for i, row, column in patches.nonzero().tolist():
            tokens[i, 1 + 4 * row + column] = real[i, :, row, column]
        return (tokens, *inputs[1:])

    handle = model.backbone.get_submodule(block).register_forward_pre_hook(put)
    with torch.no_grad():
        expected = model({"image": batch})["cls"]
    handle.remove()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.equal(found[:2], model({"image": batch})["cls"][:2])


def test_blocks_before_the_exchange_do_not_run_again(model: Any, subject: Subject) -> None:
    runs = dict.fromkeys(subject.tower.blocks, 0)

    def count(name: str) -> Any:
        return lambda module, inputs: runs.__setitem__(name, runs[name] + 1)

    fill = token_fill(subject, in_batches(4), images(4).double(), None)
    inner = [model.backbone.get_submodule(f"{name}.mlp").register_forward_pre_hook(count(name)) for name in runs]
    fill(torch.ones(4, 4, 4, dtype=torch.bool), torch.arange(4))
    for handle in inner:
        handle.remove()
    first = exchanged_block(subject.tower)
    assert [runs[name] for name in runs] == [0] * list(runs).index(first) + [1] * (BLOCKS - list(runs).index(first))


def test_the_verdict_comes_with_an_explanation(model: CLIPDetectorWithGradCAM) -> None:
    batch = images(24, seed=3).double()
    bank = Bank.of(model, batch)
    forwards = 0

    def count(*given: Any) -> None:
        nonlocal forwards
        forwards += 1

    handle = model.backbone.register_forward_pre_hook(count)
    found = model_explained(model, batch[:2], bank)
    before = forwards
    checks = found.verdicts()
    handle.remove()
    assert forwards == before and {one.fall for one in checks["scaled"]} == {None}
    joint = neighbourhood_mean(scaled_mean(found.evidence.unbind(1)))
    for i, check in enumerate(checks["scaled"]):
        hottest = int(found.maps.raw[i].argmax())
        assert check.contrast == pytest.approx(float(joint[i].flatten()[hottest] / joint[i].max()), rel=1e-5)


def test_a_check_exchanges_the_tokens_that_its_pass_has_seen(model: CLIPDetectorWithGradCAM) -> None:
    batch = images(24, seed=3).double()
    bank = Bank.of(model, batch)
    found = model_explained(model, images(3).double(), bank)
    (by_another_pass,) = replace(found, exchange=None).check().values()  # and what may be skipped is known
    runs = 0

    def count(module: Any, inputs: Any, output: Any) -> None:
        nonlocal runs
        runs += "forward" not in vars(module)  # else it is passed over

    handle = model.tower.named[model.tower.blocks[0]].register_forward_hook(count)
    (checks,) = found.check().values()
    handle.remove()
    assert runs == 0
    for check, other in zip(checks, by_another_pass, strict=True):
        assert (check.fall, check.random) == pytest.approx((other.fall, other.random), rel=1e-6, abs=1e-9)
        assert check.word == other.word and check.fall is not None


def model_explained(model: Any, batch: Tensor, bank: TokenBank) -> Any:
    from utils.gradcam import explain

    return explain(model, batch, method="hirescam", layers="scaled", site="residual", target="fake", bank=bank)


def test_a_paired_real_image_is_what_its_fake_is_compared_with(model: CLIPDetectorWithGradCAM) -> None:
    from utils.gradcam import explain

    batch, reals = images(2).double(), images(2, seed=7).double()
    found = explain(
        model,
        {"image": batch, "paired_real": reals},
        recipes=[Recipe("contrast", SCALED, backward="plain")],
        target="fake",
    )
    total = np.zeros((2, 4, 4))
    for block in range(BLOCKS - 1):
        A, G = (of[:, 1:].numpy() for of in tokens_and_gradients(model, batch, block))
        R = beside_by_hand(A, tokens_and_gradients(model, reals, block)[0][:, 1:].float().numpy(), 4)
        u = (G * (A - R)).sum(axis=2).reshape(2, 4, 4)
        total += u / u.reshape(2, -1).std(axis=1)[:, None, None] / (BLOCKS - 1)
    np.testing.assert_allclose(found.maps.signed.numpy(), total, rtol=1e-4, atol=1e-5)
    assert set(found.verdicts()) == {SCALED}


def beside_by_hand(A: Any, R: Any, side: int) -> Any:
    """Of each patch of A (B, side², C) the likest token of R at its place or next to it."""

    def direction(token: Any) -> Any:
        centred = token - token.mean()
        return centred / np.linalg.norm(centred)

    found = np.empty_like(R)
    for i, patch in itertools.product(range(len(A)), range(side**2)):
        row, column = divmod(patch, side)
        near = [
            r * side + c
            for r, c in itertools.product(range(row - 1, row + 2), range(column - 1, column + 2))
            if 0 <= r < side and 0 <= c < side
        ]
        found[i, patch] = R[i, max(near, key=lambda n: float(direction(A[i, patch]) @ direction(R[i, n])))]
    return found


def test_a_crop_that_lies_a_patch_apart_is_no_contrast() -> None:
    """Each inner patch has its counterpart next to its own place."""
    A = torch.randn(1, 6, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nearest_beside(A, A.roll((1, -1), (2, 3)))[:, :, :-1, 1:], A[:, :, :-1, 1:])


def test_in_one_batch_some_are_compared_with_their_pair_and_others_with_the_bank(
    model: CLIPDetectorWithGradCAM,
) -> None:
    from utils.gradcam import explain

    batch, reals = images(3).double(), images(3, seed=7).double()
    bank = Bank.of(model, images(24, seed=3).double())
    options: dict[str, Any] = {"recipes": [Recipe("contrast", SCALED)], "target": "fake", "bank": bank}
    has_pair = torch.tensor([True, False, True])
    found = explain(model, {"image": batch, "paired_real": reals, "has_pair": has_pair}, **options)
    for i, given in enumerate(has_pair.tolist()):
        alone = {"image": batch[i : i + 1], **({"paired_real": reals[i : i + 1]} if given else {})}
        expected = explain(model, alone, **options)
        torch.testing.assert_close(found.maps.signed[i], expected.maps.signed[0], rtol=1e-5, atol=1e-6)
        assert found.evidence is not None and expected.evidence is not None
        torch.testing.assert_close(found.evidence[i], expected.evidence[0], rtol=1e-5, atol=1e-6)


def test_the_pairs_tokens_are_searched_once_a_layer(
    model: CLIPDetectorWithGradCAM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For two maps by both rules, and for the verdict."""
    from utils.gradcam import explain
    from utils.gradcam_kit.explaining import capture

    searched: list[Tensor] = []

    def search(*given: Tensor) -> Tensor:
        searched.append(nearest_beside(*given))
        return searched[-1]

    monkeypatch.setattr(capture, "nearest_beside", search)
    batch, reals = images(2).double(), images(2, seed=7).double()
    bank = Bank.of(model, images(24, seed=3).double())
    recipes = [Recipe("contrast", SCALED, backward="both"), Recipe("contrast_z", SCALED, backward="both")]
    explain(model, {"image": batch, "paired_real": reals}, recipes=recipes, target="fake", bank=bank)
    assert len(searched) == BLOCKS - 1


def test_a_convolutional_network_is_compared_on_its_grid() -> None:
    from utils.gradcam import explain

    torch.manual_seed(0)
    features = torch.nn.Sequential(
        torch.nn.Conv2d(3, 12, 3, stride=4), torch.nn.ReLU(), torch.nn.Conv2d(12, 16, 3, stride=2), torch.nn.ReLU()
    )
    last = torch.nn.Linear(16, 2)
    network = torch.nn.Sequential(features, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), last)
    network = network.double().eval()
    with torch.no_grad():
        last.bias.copy_(torch.tensor([5.0, 0.0]))  # everything is called real
    batch, reals = images(2).double(), images(5, seed=4).double()
    bank = Bank.of(network, reals)
    assert len(bank.videos) == 5
    found = explain(network, batch, method="contrast", backward="plain", target="fake", bank=bank)
    (layer,) = found.layers
    tokens = network[0](batch).detach().requires_grad_()
    (G,) = torch.autograd.grad(network[3](network[2](network[1](tokens)))[:, 1].sum(), tokens)
    others = network[0](reals).detach().half().double().flatten(2).transpose(1, 2).reshape(-1, 16).numpy()
    expected = np.zeros(tuple(found.maps.signed.shape))
    for i in range(2):
        patches = tokens[i].detach().flatten(1).T.numpy()
        R = nearest_by_hand(patches, others, NEIGHBOURS)
        expected[i] = (G[i].flatten(1).T.numpy() * (patches - R)).sum(axis=1).reshape(expected.shape[1:])
    assert layer in bank.tokens
    np.testing.assert_allclose(found.maps.signed.numpy(), expected, rtol=1e-7, atol=1e-9)
    fill = token_fill(replace(subject_of(network, batch), bank=bank), in_batches(4), batch, None)
    with torch.no_grad():
        usual = network(batch)[:, 1] - network(batch)[:, 0]
    grid = expected.shape[1:]
    nowhere, both = torch.zeros(2, *grid, dtype=torch.bool), torch.arange(2)
    torch.testing.assert_close(fill(nowhere, both).double(), usual, rtol=1e-5, atol=1e-6)
    everywhere = fill(~nowhere, both)
    assert (everywhere - usual).abs().min() > 1e-4
    again = fill(torch.cat([~nowhere[:1], nowhere, ~nowhere[:1]]), torch.tensor([0, 0, 1, 1]))  # several of an image
    torch.testing.assert_close(again.double(), torch.stack([everywhere[0], usual[0], usual[1], everywhere[1]]).double())
