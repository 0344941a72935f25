"""Patch transplant against a float64 CLIP without any code of the library, one exchanged patch at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.command_server import CommandServer
from tests.helpers.datasets import rows_of
from tests.helpers.detectors import ARCHITECTURE, BLOCKS, PATCH, PIXELS, images, tiny_detector
from tests.helpers.paths import SCRIPT
from tests.helpers.references import reference_clip as reference
from tests.helpers.references.known_evidence import EVIDENCE, GRID, evidence_tree, patch
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.engine.maps import NonFiniteMapError
from utils.gradcam_kit.explaining.explanation import Explanation
from utils.gradcam_kit.judge.transplant import transplant_maps


def reference_map(image: Tensor, other: Tensor) -> np.ndarray:
    """The margin's change by patches, (GRID, GRID) float64, mean of both ways."""
    tower = reference.ReferenceTower(tiny_detector().state_dict(), BLOCKS, ARCHITECTURE["num_attention_heads"], PATCH)

    def margin(one: Tensor) -> float:
        real, fake = tower.logits(one[None].double())[0].tolist()
        return float(fake - real)

    found = np.zeros((GRID, GRID))
    for place in np.ndindex(GRID, GRID):
        taken, planted = image.clone(), other.clone()
        rows, columns = patch(place)
        taken[:, rows, columns] = other[:, rows, columns]
        planted[:, rows, columns] = image[:, rows, columns]
        found[place] = (margin(image) - margin(taken) + margin(planted) - margin(other)) / 2
    return found


@pytest.fixture(scope="module")
def explained() -> tuple[Tensor, Tensor, Explanation]:
    """Two images, their references, and what the detector's own call gives for "fake"."""
    pixels, other = images(2, seed=4), images(2, seed=5)
    model = tiny_detector()
    return pixels, other, model.explain({"image": pixels, "reference": other}, method="transplant", target="fake")


def test_every_patch_is_worth_what_its_exchange_changes(explained: tuple[Tensor, Tensor, Explanation]) -> None:
    pixels, other, explanation = explained
    (maps,) = explanation.layers.values()
    for i in range(2):
        expected = reference_map(pixels[i], other[i])
        np.testing.assert_allclose(maps.signed[i].numpy(), expected, atol=2e-4)
        np.testing.assert_allclose(maps.raw[i].numpy(), expected.clip(min=0), atol=2e-4)
        assert np.abs(expected).max() > 0.1
    assert (explanation.method, explanation.site, list(explanation.layers)) == ("transplant", "pixels", ["input"])
    assert maps.normalised.shape == (2, PIXELS, PIXELS) and not maps.empty.any()


def test_logits_are_the_detectors_own(explained: tuple[Tensor, Tensor, Explanation]) -> None:
    with torch.no_grad():
        expected = tiny_detector()({"image": explained[0]}, inference=True)["cls"]
    assert torch.equal(explained[2].logits, expected)


def test_the_sign_is_that_of_the_class_explained(explained: tuple[Tensor, Tensor, Explanation]) -> None:
    pixels, other, explanation = explained
    fake, data = explanation.layers["input"].signed, {"image": pixels, "reference": other}
    model = tiny_detector()
    both = model.explain(data, method="transplant", target="both")
    assert torch.equal(both.layers["input_fake"].signed, fake) and both.target == ["both", "both"]
    assert torch.equal(both.layers["input_real"].signed, -fake)
    mixed = model.explain(data, method="transplant", target=["margin", "real"])
    assert torch.equal(mixed.layers["input"].signed, torch.stack([fake[0], -fake[1]]))


def test_without_a_reference_it_is_a_blurred_copy() -> None:
    """A patch inside an even image is its own blur: only what has an edge can be worth anything."""
    image = torch.zeros(1, 3, PIXELS, PIXELS)
    rows, columns = patch(EVIDENCE)
    image[0, :, rows, columns] = 1.0
    signed = tiny_detector().explain({"image": image}, method="transplant").layers["input"].signed[0]
    assert signed[EVIDENCE] != 0
    far = [place for place in np.ndindex(GRID, GRID) if max(abs(np.subtract(place, EVIDENCE))) > 1]
    assert max(abs(float(signed[place])) for place in far) < 1e-5 < float(signed[EVIDENCE].abs())


def test_what_is_the_same_costs_nothing() -> None:
    """One patch differs: two whole images and two exchanges, however many patches there are."""
    image, other = images(1, seed=6), images(1, seed=6)
    rows, columns = patch((2, 1))
    other[0, :, rows, columns] += 1.0
    seen = []

    def margins(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        return batch.double().mean(dim=(1, 2, 3))

    found = transplant_maps(margins, image, other, (GRID, GRID), batch_size=8)[0]
    assert sum(seen) == 4 and found.nonzero().tolist() == [[2, 1]]
    assert float(found[2, 1]) == pytest.approx(-1.0 / GRID**2, rel=1e-5)


def test_refusals() -> None:
    model, pixels = tiny_detector(), images(2)
    with pytest.raises(
        InputError, match=r"data_dict\['reference'\] has shape \(1, 3, 64, 64\): expected \(2, 3, 64, 64\)"
    ):
        model.explain({"image": pixels, "reference": pixels[:1]}, method="transplant")
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    with pytest.raises(NonFiniteMapError, match="the logits"):
        model.explain({"image": pixels}, method="transplant")


def test_a_run_draws_it_against_the_real_frame(commands: CommandServer, tmp_path: Path) -> None:
    """Only the evidence differs between a fake and its real frame by what the detector reads: that patch is hottest."""
    tree, out = evidence_tree(tmp_path / "tree", None, 3), tmp_path / "run"
    flags = ["--gradcam_enabled", "--gradcam_method", "transplant", "--save_all_predictions", "--save_raw"]
    done = commands.run(SCRIPT, *tree.arguments(*flags, "--gradcam_output_dir", out), cwd=tmp_path)
    assert done.code == 0, done.err
    assert (
        f"toy: transplant takes up to {2 * GRID**2} forward passes for each of 6 images; 3 are compared with their"
        " original real frame, 3 with a blurred copy"
    ) in done.out
    for row in rows_of(out / "toy"):
        if row["label"] == "1":
            name = f"sample{row['index']}/raw_sample{row['index']}.npz"
            raw = np.load(out / "toy" / name)["input"]
            assert np.unravel_index(raw.argmax(), raw.shape) == EVIDENCE
            assert raw[EVIDENCE] > 100 * np.delete(raw.ravel(), np.ravel_multi_index(EVIDENCE, raw.shape)).max()
    refused = commands.run(SCRIPT, *tree.arguments(*flags, "--evaluate_explanations"), cwd=tmp_path)
    assert refused.code == 2 and "already measures every map by transplant" in refused.err
