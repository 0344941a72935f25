"""Regions of the face, mean maps and their similarity: against values worked out by hand or by another library."""

from __future__ import annotations

import csv
import itertools
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.draw import polygon2mask
from skimage.transform import PiecewiseAffineTransform, warp

from examples.make_demo_data import Video, draw_video
from tests.helpers.fake_run import GRID, LAYERS, Row, sample_of, write_row, write_tables
from utils.gradcam_kit.judge.localisation import TemporalConsistency
from utils.gradcam_kit.media.faces import FIVE_OF_81, MARGIN, TEMPLATE, TEMPLATE_SIZE
from utils.gradcam_kit.report.aggregates import CELL, COLUMN, GAP, LINE, NAMES, ROW, write_patterns
from utils.gradcam_kit.report.face_regions import (
    REGIONS,
    RegionShares,
    group_regions,
    region_image,
    region_shares,
    sample_landmarks,
)
from utils.gradcam_kit.report.mean_maps import MEAN_FACE, MEAN_SIZE, MeanMaps, warp_to_mean_face
from utils.gradcam_kit.store.read_run import read_run
from utils.gradcam_kit.store.sample import Sample

PLACES = {"left eye": range(36, 42), "right eye": range(42, 48), "brows": range(17, 27), "nose": range(27, 36),
          "mouth": range(48, 68)}  # fmt: skip


def sample(number: int, label: int = 1, video: str = "000", forgery: str = "swap", prob: float = 0.9) -> Sample:
    return sample_of(Row(number, "set", forgery, video, label, prob, ""))


# ----------------------------------------------------------------------------------------------------------- regions


def test_every_landmark_lies_in_its_region_on_drawn_faces() -> None:
    for kind, number in (("mouthswap", 0), ("innerface", 1), ("eyeswap", 2)):
        _, _, _, landmarks = draw_video(Video("test", kind, number), seed=7)[0]
        points = landmarks / 224
        regions = region_image(points)
        at = [REGIONS[regions[min(223, round(y * 224)), min(223, round(x * 224))]] for x, y in points]
        for region, members in PLACES.items():
            assert {at[i] for i in members} == {region}
        assert {at[i] for i in range(17)} == {"boundary ring"}  # the jaw's own outline
        assert regions[3, 3] == regions[220, 220] == REGIONS.index("background")
        middle = (points[39] + points[42]) / 2  # between the eyes, above the nose's first point
        forehead = middle + 1.6 * (points[19:25].mean(axis=0) - middle)
        assert REGIONS[regions[round(forehead[1] * 224), round(forehead[0] * 224)]] == "forehead"
        cheek = (points[3] + points[33]) / 2
        assert REGIONS[regions[round(cheek[1] * 224), round(cheek[0] * 224)]] == "cheeks"
        chin = points[57] + 0.5 * (points[8] - points[57])
        assert REGIONS[regions[round(chin[1] * 224), round(chin[0] * 224)]] == "jaw line"
        # Left is the viewer's left.
        columns = [np.nonzero(regions == REGIONS.index(f"{side} eye"))[1].mean() for side in ("left", "right")]
        assert columns[0] < columns[1]


def test_the_face_is_the_hull_of_the_landmarks() -> None:
    """Area inside the ring's middle against scikit-image's own polygon."""
    regions = region_image(MEAN_FACE)
    hull = cv2.convexHull((MEAN_FACE * 224).astype(np.float32))[:, 0, ::-1]
    inside = polygon2mask((224, 224), hull)
    face = (regions != REGIONS.index("background")) & (regions != REGIONS.index("boundary ring"))
    assert (face & ~inside).sum() == 0
    ring = regions == REGIONS.index("boundary ring")
    assert 0.4 < (ring & inside).sum() / ring.sum() < 0.6  # half inside, half outside
    assert np.bincount(regions.ravel(), minlength=len(REGIONS)).min() > 100  # every region is there


def test_preference_is_mass_over_area() -> None:
    regions = region_image(MEAN_FACE)
    preference = region_shares(np.ones((4, 4), np.float32), regions)
    np.testing.assert_allclose(preference, 1, atol=1e-6)  # a map without preference
    # All of the mass on the mouth: its preference is one over its area, all others 0.
    on_mouth = (regions == REGIONS.index("mouth")).astype(np.float32) * 0.3
    preference = region_shares(on_mouth, regions)
    assert preference[REGIONS.index("mouth")] == pytest.approx(1 / on_mouth.astype(bool).mean(), rel=1e-6)
    assert preference.sum() == pytest.approx(preference[REGIONS.index("mouth")])
    # A face so large that nothing around it is in the image: that region has no preference at all.
    large = region_image((MEAN_FACE - 0.5) * 6 + 0.5)
    assert np.isnan(region_shares(np.ones((4, 4), np.float32), large)[REGIONS.index("background")])


# --------------------------------------------------------------------------------------------------- intervals, means


def test_intervals_are_those_of_videos() -> None:
    """Frames of a video are nearly copies here, so the error is that of 60 videos, not of 600 frames."""
    rng = np.random.default_rng(3)
    video_means = rng.normal(2.0, 0.5, 60)
    shares = []
    for video, mean in enumerate(video_means):
        for frame in range(10):
            preference = np.full(len(REGIONS), np.nan)
            preference[REGIONS.index("nose")] = mean + rng.normal(0, 0.01)
            shares.append(RegionShares(sample(10 * video + frame, video=str(video)), "layer", preference, False))
    (group,) = group_regions(shares, ["layer"])
    nose = group.preference[REGIONS.index("nose")]
    assert (group.samples, group.videos, group.outcome) == (600, 60, "TP")
    assert nose.mean == pytest.approx(video_means.mean(), abs=2e-3)
    assert (nose.high - nose.low) / 2 == pytest.approx(1.96 * video_means.std() / np.sqrt(60), rel=0.12)
    assert group.headline() == f"swap: {nose.mean:.1f} × on the nose ({nose.low:.1f}–{nose.high:.1f})"
    (single,) = group_regions(shares[:10], ["layer"])
    assert np.isnan(single.preference[REGIONS.index("nose")].low) and "(" not in single.headline()


def test_the_mean_face_is_an_aligned_face() -> None:
    """Eyes, nose and mouth lie where the benchmarks' crop puts them; left mirrors right."""
    template = ((TEMPLATE - TEMPLATE_SIZE / 2) / MARGIN + TEMPLATE_SIZE / 2) / TEMPLATE_SIZE
    assert np.abs(MEAN_FACE[list(FIVE_OF_81)] - template).max() < 0.06
    assert MEAN_FACE.shape == (81, 2) and np.allclose(MEAN_FACE[0] + MEAN_FACE[16], [1, 2 * MEAN_FACE[0, 1]], atol=0.01)


def test_warping_agrees_with_scikit_image() -> None:
    rng = np.random.default_rng(0)
    tilt = np.array([[0.96, -0.17], [0.17, 0.96]])
    landmarks = (MEAN_FACE - 0.5) @ tilt.T * 0.9 + 0.53 + rng.normal(0, 0.004, (81, 2))
    smooth = cv2.resize(rng.random((7, 7)).astype(np.float32), (224, 224), interpolation=cv2.INTER_CUBIC)
    found = warp_to_mean_face(smooth[None], landmarks, 112)[0]
    reference = PiecewiseAffineTransform()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer scikit-image has another name for it
        assert reference.estimate(MEAN_FACE * 112 - 0.5, landmarks * 224 - 0.5)
    expected = warp(smooth, reference, output_shape=(112, 112), cval=np.nan, order=1)
    inner = polygon2mask((112, 112), cv2.convexHull((MEAN_FACE * 104 + 4).astype(np.float32))[:, 0, ::-1])
    inner &= np.isfinite(expected)
    difference = np.abs(found - expected)[inner]
    assert inner.sum() > 2500 and np.quantile(difference, 0.99) < 2e-3 and difference.max() < 0.05
    # An image whose landmarks are the mean face's stays where it is, border and all.
    np.testing.assert_allclose(
        warp_to_mean_face(smooth[None], MEAN_FACE, 224)[0], smooth, atol=2e-2 * float(np.ptp(smooth))
    )


def test_similarity_is_the_mean_correlation_of_all_pairs() -> None:
    rng = np.random.default_rng(1)
    means = MeanMaps(["layer"])
    kept = []
    for number in range(14):
        label, video = number % 2, f"{number // 4}"  # videos of one name are real and fake ones of one face
        raw = rng.random((4, 4)).astype(np.float32) + (0.5 * np.eye(4, dtype=np.float32) if label else 0)
        means.add(sample(number, label, video), {"layer": raw}, None)
        full = cv2.resize(raw, (128, 128), interpolation=cv2.INTER_LINEAR)
        kept.append((label, video, warp_to_mean_face(full[None], MEAN_FACE, MEAN_SIZE)[0].ravel()))
    pairs: dict[tuple[int, int], list[float]] = {(0, 0): [], (1, 1): [], (0, 1): []}
    for one, other in itertools.combinations(kept, 2):
        if one[1] != other[1]:
            kind = (min(one[0], other[0]), max(one[0], other[0]))
            pairs[kind].append(float(np.corrcoef(one[2], other[2])[0, 1]))
    found = means.similarity("layer")
    assert (found.reals, found.fakes) == (7, 7)
    assert found.within_real == pytest.approx(np.mean(pairs[0, 0]), abs=1e-6)
    assert found.within_fake == pytest.approx(np.mean(pairs[1, 1]), abs=1e-6)
    assert found.across == pytest.approx(np.mean(pairs[0, 1]), abs=1e-6)
    assert found.within_fake > found.across


def test_mean_maps_and_their_difference() -> None:
    means = MeanMaps(["layer"])
    up, down = np.zeros((2, 4, 4), np.float32)
    up[0], down[3] = 1, 5  # the second is brought to the same height
    for number, raw in enumerate((up, up, down)):
        means.add(sample(number, 1, str(number)), {"layer": raw}, None)
    means.add(sample(3, 0, "3", "real", 0.1), {"layer": down}, None)
    found = means.mean("swap", "TP", "layer")
    assert found is not None and found[1] == 3 and means.groups() == [("swap", "TP"), ("real", "TN")]
    assert found[0][5, 32] == pytest.approx(2 / 3, abs=0.02) and found[0][58, 32] == pytest.approx(1 / 3, abs=0.02)
    difference = means.fake_minus_real("layer")
    assert difference is not None and difference[58, 32] == pytest.approx(1 / 3 - 1, abs=0.02)


def test_steadiness() -> None:
    rng = np.random.default_rng(2)
    maps = [rng.random((4, 4)) for _ in range(4)]
    row = TemporalConsistency()
    for frame in (maps[0], maps[1], None, maps[2], maps[3]):  # no face in the third
        row.add({} if frame is None else {"layer": frame})
    expected = [np.corrcoef(maps[a].ravel(), maps[b].ravel())[0, 1] for a, b in ((0, 1), (2, 3))]
    assert row.consistency()["layer"] == pytest.approx(np.mean(expected))


# ------------------------------------------------------------------------------------------------------- a whole run


def test_tables_of_a_run(tmp_path: Path) -> None:
    """Two forgeries on drawn faces: one looked at on the mouth, the other, without landmarks, on the left eye."""
    rows = []
    for number in range(8):
        forgery, hot = (("mouthy", (3, 2)), ("blind", (1, 1)))[number // 4]
        frame = tmp_path / forgery / "frames" / f"{number // 2:03d}" / f"{number:03d}.png"
        frame.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(frame), np.zeros((448, 448, 3), np.uint8))  # stored larger than the detector sees it
        if forgery == "mouthy":
            # A face whose mouth lies in the middle of patch (3, 2): down and to the right.
            points = (MEAN_FACE + np.array([0.125, 0.13])) * 448
            place = tmp_path / forgery / "landmarks" / frame.parent.name / f"{frame.stem}.npy"
            place.parent.mkdir(parents=True, exist_ok=True)
            np.save(place, points.astype(np.float32))
        rows.append(Row(number, "set", forgery, frame.parent.name, 1, 0.9, str(frame), hot))
    run = tmp_path / "run"
    write_tables(run, rows)
    for row in rows:
        write_row(run, row, empty=row.number == 7)
    results = read_run(run)
    landmarks = sample_landmarks(results.datasets[0].samples[0])
    assert landmarks is not None and np.abs(landmarks - MEAN_FACE - (0.125, 0.13)).max() < 1e-3
    patterns = write_patterns(results, results.folder)
    assert patterns[0].samples == 7 and patterns[0].mean_faces == 3  # the empty one is left out

    with (run / "regions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * 2 * len(REGIONS) and {row["outcome"] for row in table} == {"TP"}
    best = {}
    for forgery in ("mouthy", "blind"):
        own = [row for row in table if row["forgery"] == forgery and row["layer"] == LAYERS[0]]
        best[forgery] = max(own, key=lambda row: float(row["preference"]))
    assert best["mouthy"]["region"] == "mouth" and best["mouthy"]["layout"] == "landmarks"
    assert best["blind"]["region"] == "left eye" and best["blind"]["layout"] == "mean face"
    assert (best["mouthy"]["samples"], best["mouthy"]["videos"], best["blind"]["samples"]) == ("4", "2", "3")
    # The mouth's preference again, from the grey image on disk, by hand.
    grey = np.asarray(cv2.imread(str(run / "set" / "sample0" / "heatmaps" / f"{LAYERS[0]}.png"), cv2.IMREAD_UNCHANGED))
    assert grey.shape == (GRID, GRID)
    full = cv2.resize(grey.astype(np.float32), (224, 224), interpolation=cv2.INTER_LINEAR)
    mouth = region_image(MEAN_FACE + np.array([0.125, 0.13])) == REGIONS.index("mouth")
    by_hand = (full[mouth].sum() / full.sum()) / mouth.mean()
    assert float(best["mouthy"]["preference"]) == pytest.approx(by_hand, rel=1e-3)
    assert float(best["mouthy"]["low"]) <= by_hand + 1e-3 <= float(best["mouthy"]["high"]) + 2e-3

    with (run / "set" / "regions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 7 * 2
    with (run / "map_similarity.csv").open(newline="") as file:
        similarity = list(csv.DictReader(file))
    assert [row["layer"] for row in similarity] == list(LAYERS) and similarity[0]["within_real"] == ""
    assert (
        float(similarity[0]["within_fake"]) < float(similarity[1]["within_fake"]) < 1
    )  # hot at different places, at one
    drawn_regions(np.asarray(cv2.imread(str(run / "set" / "regions.png")))[..., ::-1], table)
    drawn_means(np.asarray(cv2.imread(str(run / "set" / "mean_maps.png")))[..., ::-1])


def drawn_regions(image: np.ndarray, table: list[dict[str, str]]) -> None:
    """Every cell's colour is its number's: white at 1, red above, blue below, full at eight times and an eighth."""
    for k, layer in enumerate(LAYERS):
        top = GAP + ROW + k * (GAP + 3 * ROW) + GAP + ROW  # below the title and this layer's heading
        for f, forgery in enumerate(("mouthy", "blind")):
            own = [row for row in table if (row["forgery"], row["layer"]) == (forgery, layer)]
            for r, row in enumerate(own):
                cell = image[top + f * ROW + 3, GAP + 2 * NAMES + r * COLUMN + 4].astype(float)
                strength = np.clip(np.log(float(row["preference"]) + 1e-9) / np.log(8), -1, 1)
                end = np.array([178, 24, 43] if strength > 0 else [33, 102, 172])
                np.testing.assert_allclose(cell, 255 + (end - 255) * abs(strength), atol=2, err_msg=str(row))


def drawn_means(image: np.ndarray) -> None:
    """Two forgeries by two layers: each small map is red at its hot patch and blue far from it, as jet has them."""
    assert image.shape[:2] == (LINE + 2 * (CELL + LINE), NAMES + 2 * (CELL + GAP))
    for f, hot in enumerate(((3, 2), (1, 1))):
        for k in range(2):
            top, left = LINE + f * (CELL + LINE), NAMES + GAP // 2 + k * (CELL + GAP)
            cell = image[top : top + CELL, left : left + CELL].astype(int)
            red = (cell[..., 0] > 150) & (cell[..., 2] < 60)
            blue = (cell[..., 2] > 100) & (cell[..., 0] < 30)
            # The first forgery's landmarks lie down and to the right of the mean face's, so its maps move up and left.
            offset = np.array([0.13, 0.125]) if f == 0 else np.zeros(2)
            patch = np.array(hot if k == 0 else (1, 1))
            middle = ((patch + 0.5) / GRID - offset) * CELL
            found = np.argwhere(red).mean(axis=0)
            assert np.abs(found - middle).max() < CELL / 12, (f, k, found, middle)
            assert blue.mean() > 0.3
