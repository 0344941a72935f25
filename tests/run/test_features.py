"""--save_features: the numbers are the detector's own, resumed or shared among processes, and the page shows them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import test_with_gradcam
from tests.helpers.command_server import CommandServer
from tests.helpers.datasets import DataTree, read_image, rows_of
from tests.helpers.detectors import PIXELS, tiny_detector
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.report.page_parts.pattern_drawings import principal_plane
from utils.gradcam_kit.store.tables import FEATURES


def features_of(rows: list[dict[str, str]]) -> np.ndarray:
    """By the detector that the weights are from, image by image, in the order of the rows."""
    import cv2

    found = []
    for row in rows:
        small = cv2.resize(read_image(row["path"])[..., ::-1], (PIXELS, PIXELS), interpolation=cv2.INTER_CUBIC)
        image = (torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
        with torch.no_grad():
            found.append(tiny_detector()({"image": image})["feat"][0].numpy())
    return np.stack(found)


@pytest.mark.slow
def test_features_of_every_frame_and_the_pages_scatter(
    commands: CommandServer, data_tree: DataTree, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags: list[str | Path] = [
        "--save_features",
        "--gradcam_enabled",
        "--gradcam_samples",
        "3",
        "--gradcam_output_dir",
        out,
    ]
    assert commands.run("test_with_gradcam.py", *data_tree.arguments(*flags), cwd=tmp_path).code == 0
    rows = rows_of(out / "toy")
    with np.load(out / "toy" / FEATURES) as saved:
        np.testing.assert_allclose(saved["feat"], features_of(rows), atol=1e-5)
        assert saved["path"].tolist() == [row["path"] for row in rows]
        assert saved["label"].tolist() == [int(row["label"]) for row in rows]
        assert [saved["forgery_names"][i] for i in saved["label_spe"]] == [row["forgery"] for row in rows]
    page = (out / "index.html").read_text()
    circles = re.findall(r'<circle class="(real|fake)( explained)?"', page)
    assert len(circles) == len(rows) and len(re.findall(r'href="#sample=toy%2F\d+"', page)) == 3
    # Gone, a resumed run writes it again; the same bytes.
    before = (out / "toy" / FEATURES).read_bytes()
    again = commands.run("test_with_gradcam.py", *data_tree.arguments(*flags, "--resume"), cwd=tmp_path)
    assert again.code == 0 and (out / "toy" / FEATURES).read_bytes() == before


def test_the_plane_is_numpys_svd() -> None:
    feat = np.random.default_rng(0).normal(size=(50, 6)) * [9, 5, 1, 1, 1, 1]
    plane, shares = principal_plane(feat)
    centred = feat - feat.mean(axis=0)
    _, s, v = np.linalg.svd(centred, full_matrices=False)
    assert list(shares) == pytest.approx((s[:2] ** 2 / (s**2).sum()).tolist())
    for column, axis in zip(plane.T, v[:2], strict=True):
        assert abs(np.corrcoef(column, centred @ axis)[0, 1]) == pytest.approx(1)
    assert plane.min() == pytest.approx(2) and plane.max() == pytest.approx(98)


def test_a_detector_without_features_is_refused_before_the_run(
    data_tree: DataTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detectors import DETECTOR
    from tests.helpers.detectors import AnyHead  # returns logits alone

    monkeypatch.setitem(DETECTOR.data, "clip_gradcam", lambda config: AnyHead(dict(config)))
    command: list[Any] = data_tree.arguments("--save_features", "--gradcam_output_dir", tmp_path / "out")
    with pytest.raises(InputError, match="returns no features of its images under 'feat'; leave --save_features out"):
        test_with_gradcam.main(list(map(str, command)))
    assert not (tmp_path / "out").exists()
