"""The report as a person uses it: in a real browser, opened from the file system, without a network."""

from __future__ import annotations

import csv
import hashlib
import itertools
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import cv2
import numpy as np
import pytest

from tests.helpers.fake_run import (
    LAYERS,
    Row,
    changed_row,
    image_of,
    remove_images,
    some_rows,
    with_values,
    write_large_run,
    write_row,
    write_run,
    write_tables,
)
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.report.page import SHOWN_SAMPLES, render, write_report
from utils.gradcam_kit.report.paper import chosen_samples
from utils.gradcam_kit.store.read_run import read_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)
playwright_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Tab:
    """One page; whatever goes wrong in it is kept."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1200, "height": 800}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", self._refuse)
        self.page.on("request", lambda request: self._note(request.url))

    def _refuse(self, dialog: Any) -> None:
        self.errors.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def _note(self, url: str) -> None:
        if not url.startswith(("file:", "data:")):
            self.elsewhere.append(url)

    def open(self, run: Path, fragment: str = "") -> Any:
        self.page.goto(f"{(run / 'index.html').as_uri()}{fragment}")
        return self.page

    def shown(self) -> list[str]:
        return self.page.eval_on_selector_all(".card", "cards => cards.map(card => card.dataset.key)")


@pytest.fixture
def tab(browser: Any) -> Iterator[Tab]:
    tab = Tab(browser)
    yield tab
    tab.context.close()
    assert tab.errors == [] and tab.elsewhere == []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "a run"
    write_run(folder, some_rows(folder.parent))
    write_report(folder)
    return folder


ROWS = some_rows(Path("/"))


def expected(**wanted: Any) -> list[str]:
    """The mistakes first, then detected fakes, then reals, the most confident of each first."""
    low, high = wanted.pop("between", (0.5, 1.0))
    kinds = ["FP", "FN"], ["TP"], ["TN"]
    in_order = sorted(
        ROWS, key=lambda row: ([row.outcome in kind for kind in kinds].index(True), -round(row.confidence, 6))
    )
    return [
        f"{row.dataset}/{row.number}"
        for row in in_order
        if all(getattr(row, name) in values for name, values in wanted.items()) and low <= row.confidence <= high
    ]


def slide(page: Any, label: str, value: str) -> None:
    page.get_by_role("slider", name=label, exact=True).evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})); }", value
    )


def until(page: Any, condition: str) -> None:
    """Wait for a condition in JavaScript. Playwright's own waiting evaluates text in the page, which the page forbids."""
    for _ in range(150):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never came true: {condition}")


# ------------------------------------------------------------------------------------------------------------ header


def test_the_header_tells_the_run(run: Path, tab: Tab) -> None:
    page = tab.open(run)
    text = page.inner_text("body")
    for part in ("weights.pth", "abababababab", "faces", "others", "clip_gradcam", "gradcam", "layer_norm1", "plain",
                 ", ".join(LAYERS), "predicted", "fake above 0.5", "24 of 24, wrong predictions", "2024-01-01"):  # fmt: skip
        assert part in text
    assert "toy detector" not in text
    show(page, "Metrics")
    assert "0.7500" in page.inner_text("#panel-metrics")
    assert page.get_by_role("img", name="ROC curve of faces, AUC 0.7500").count() == 1
    # The ROC curve by hand: 6 reals, 12 fakes; with one threshold a distinct score.
    points = page.locator("polyline").first.get_attribute("points").split()
    curve = np.array([[float(number) for number in point.split(",")] for point in points])
    label = np.array([row.label for row in ROWS if row.dataset == "faces"])
    score = np.array([row.prob_fake for row in ROWS if row.dataset == "faces"])
    for threshold in sorted(set(score)):
        false = ((score >= threshold) & (label == 0)).sum() / 6
        true = ((score >= threshold) & (label == 1)).sum() / 12
        # the curve runs through this point, on a corner or on a straight piece
        assert min(_distance(curve, np.array([100 * false, 100 - 100 * true]))) < 0.02
    page.get_by_text("Configuration").click()
    assert page.get_by_text("gradcam_colormap: jet").is_visible()


def test_a_threshold_decides(run: Path, tab: Tab) -> None:
    """The matrix, the rates, the point on the curve and each forgery's share, counted by hand at two thresholds."""
    page = tab.open(run, "#tab=metrics")
    rows = [row for row in ROWS if row.dataset == "faces"]
    part = page.locator("[data-level=frames][data-dataset='0']")
    for threshold in (0.5, 0.62):
        slider = page.get_by_role("slider", name="Threshold")
        places = page.evaluate("data.detection.thresholds")
        slide(page, "Threshold", str(places.index(threshold)))
        assert slider.get_attribute("aria-valuetext") == str(threshold)
        called = {(label, fake): sum(row.label == label and (row.prob_fake > threshold) == fake for row in rows)
                  for label in (0, 1) for fake in (False, True)}  # fmt: skip
        for rate, key in (("TN", (0, False)), ("FP", (0, True)), ("FN", (1, False)), ("TP", (1, True))):
            assert part.locator(f".matrix [data-rate={rate}]").inner_text() == str(called[key])
        right, found = called[0, False] + called[1, True], called[1, True] / 12
        assert part.locator("[data-rate=accuracy]").inner_text() == f"{right / len(rows):.3f}"
        point = part.locator("circle.here")
        assert float(point.get_attribute("cx")) == pytest.approx(100 * called[0, True] / 6)
        assert float(point.get_attribute("cy")) == pytest.approx(100 - 100 * found)
        of_swap = sum(row.forgery == "swap_Fake" and row.prob_fake > threshold for row in rows) / 6
        assert part.get_by_role("row", name="swap_Fake").locator("[data-forgery]").inner_text() == f"{of_swap:.3f}"
    assert "threshold=0.62" in page.evaluate("location.hash")
    page.get_by_role("radio", name="videos").check()
    assert not part.is_visible() and page.locator("[data-level=videos][data-dataset='0']").is_visible()
    assert "3 real and 6 fake videos" in page.locator("[data-level=videos][data-dataset='0']").inner_text()
    page.reload()
    assert page.get_by_role("radio", name="videos").is_checked()
    others = page.locator("[data-level=videos][data-dataset='1']")
    assert "All videos are fake" in others.inner_text() and others.locator(".matrix tbody tr").count() == 1


def _distance(curve: np.ndarray, point: np.ndarray) -> list[float]:
    distances = []
    for one, other in itertools.pairwise(curve):
        along = other - one
        share = np.clip((point - one) @ along / max(1e-12, along @ along), 0, 1)
        distances.append(float(np.linalg.norm(one + share * along - point)))
    return distances


def show(page: Any, tab: str) -> None:
    page.get_by_role("tab", name=tab).click()


def test_tabs_by_keyboard_and_address(run: Path, tab: Tab) -> None:
    page = tab.open(run)
    assert page.get_by_role("tabpanel").get_attribute("id") == "panel-samples"
    page.get_by_role("tab", name="Samples").focus()
    for key, shown in (("ArrowRight", "metrics"), ("End", "files"), ("ArrowRight", "samples"), ("ArrowLeft", "files")):
        page.keyboard.press(key)
        assert page.get_by_role("tabpanel").get_attribute("id") == f"panel-{shown}"
        assert page.evaluate("document.activeElement.id") == f"tab-{shown}"
    assert page.evaluate("location.hash") == "#tab=files"
    page.reload()
    assert page.get_by_role("tabpanel").get_attribute("id") == "panel-files"


def test_a_run_without_files_of_images_shows_them(browser: Any, tab: Tab, tmp_path: Path) -> None:
    """Cards, the large view and the saved view, with no file of a sample beside the page."""
    rows = some_rows(tmp_path)
    folder = write_run(tmp_path / "run", rows)
    for row in rows:
        frame = Path(row.path)
        frame.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(frame), image_of(row)[..., ::-1])
        digest = hashlib.sha256(frame.read_bytes()).hexdigest()[:16]
        changed_row(folder, "sample", "facts", with_values(image_hash=digest), f"idx = {row.number}")
    for sample in folder.glob("*/sample*/"):
        shutil.rmtree(sample)
    write_report(folder)
    page = tab.open(folder)
    loaded = "[...document.querySelectorAll('.card')].slice(0, 6).every(card => [...card.querySelectorAll('img')].every(image => image.naturalWidth > 0))"
    until(page, loaded)
    assert page.locator(".card .lost").count() == 0 and page.locator(".card img").count() >= 2 * 24
    image = page.evaluate(
        "(() => { const i = document.querySelector('.card img'); return [i.naturalWidth, i.naturalHeight]; })()"
    )
    assert image == [64, 64]  # the image alone, not the comparison
    page.locator(".card").first.click()
    until(page, "[...document.querySelectorAll('#stage img')].every(image => image.naturalWidth > 0)")
    with page.expect_download() as download:
        page.locator("#save").click()
    saved = cv2.imread(str(download.value.path()))
    assert saved is not None and saved.shape[1] == 896


def test_the_first_screen_shows_samples(run: Path, tab: Tab) -> None:
    """Two rows of cards at 1440 x 900; on a phone the first card, with layer and opacity on the screen wherever it is."""
    tab.page.set_viewport_size({"width": 1440, "height": 900})
    page = tab.open(run)
    tops = sorted({round(box["y"]) for box in (one.bounding_box() for one in page.locator(".card").all()[:12])})
    assert tops[0] < 330 and tops[1] < 700
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    assert page.get_by_role("slider", name="Opacity").bounding_box()["y"] < 160
    tab.page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    assert page.locator(".card").first.bounding_box()["y"] < 400
    for place in (0, 2000):
        page.evaluate(f"scrollTo(0, {place})")
        for name in ("Layer", "Opacity"):
            assert 700 < page.get_by_role("slider", name=name, exact=True).bounding_box()["y"] < 844


def test_every_file_of_the_run_is_linked(run: Path, tab: Tab) -> None:
    page = tab.open(run, "#tab=files")
    links = page.eval_on_selector_all("#panel-files a", "links => links.map(link => link.href)")
    linked = {Path(os.fsdecode(unquote_to_bytes(link[len("file://") :]))) for link in links}
    there = {
        path for path in run.rglob("*") if path.is_file() and not any("sample" in part for part in path.parts[-3:])
    }
    assert linked == there - {run / "index.html"} and run / "faces" / "predictions.csv" in linked


# ----------------------------------------------------------------------------------------------------------- gallery


def test_filters_and_sorting(run: Path, tab: Tab) -> None:
    page = tab.open(run)
    assert tab.shown() == expected()
    page.get_by_role("combobox", name="Dataset", exact=True).select_option("others")
    assert tab.shown() == expected(dataset=["others"])
    page.get_by_role("combobox", name="Dataset", exact=True).select_option("")
    page.get_by_role("combobox", name="Forgery", exact=True).select_option("swap_Fake")
    assert tab.shown() == expected(forgery=["swap_Fake"])
    page.get_by_role("button", name="Reset").click()
    for outcome in ("TP", "TN"):
        page.get_by_role("checkbox", name=outcome).uncheck()
    assert tab.shown() == expected(outcome=["FP", "FN"])
    assert page.get_by_role("status").inner_text() == f"{len(tab.shown())} of {len(ROWS)} explained samples"
    page.get_by_role("button", name="Reset").click()
    slide(page, "Confidence from", "0.6")
    slide(page, "Confidence to", "0.9")
    assert tab.shown() == expected(between=(0.6, 0.9))
    page.get_by_role("button", name="Reset").click()
    page.get_by_label("Path contains").fill("REENACT_fake/FRAMES/002")
    assert tab.shown() == [f"{row.dataset}/{row.number}" for row in ROWS if "reenact_Fake/frames/002" in row.path]
    page.get_by_role("button", name="Reset").click()
    page.get_by_role("combobox", name="Sort by", exact=True).select_option(label="confidence, highest first")
    by_key = {f"{row.dataset}/{row.number}": row for row in ROWS}
    shown = [by_key[key].confidence for key in tab.shown()]
    assert shown == sorted(shown, reverse=True) and len(shown) == len(ROWS)
    page.get_by_role("combobox", name="Sort by", exact=True).select_option(label="fake probability, highest first")
    shown = [by_key[key].prob_fake for key in tab.shown()]
    assert shown == sorted(shown, reverse=True) and shown[0] == 0.97
    card = page.locator(".card").first.inner_text()
    assert (
        "predicted fake" in card
        and "fake 0.970" in card
        and "evidence for FAKE" in card
        and "real_Real · 002 · 005.png" in card
    )
    last = page.locator(".card").last.inner_text()
    assert "predicted real" in last and "fake 0.030" in last  # what they are sorted by, also of a real
    page.get_by_label("Path contains").fill("nothing is called that")
    assert tab.shown() == [] and page.get_by_role("status").inner_text().startswith("None of the 24 explained samples")


def overlay_pixels(page: Any, card: int = 0) -> np.ndarray:
    """The second image of a card as the browser shows it, (H, W, 3) RGB."""
    image = page.locator(".card").nth(card).locator(".picture").nth(1)
    image.scroll_into_view_if_needed()
    of_card = f"document.querySelectorAll('.card')[{card}].querySelectorAll('img')"
    until(page, f"[...{of_card}].every(image => image.complete)")
    page.wait_for_timeout(150)
    return screenshot(image)


def screenshot(element: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    return np.asarray(cv2.imdecode(np.frombuffer(element.screenshot(), np.uint8), cv2.IMREAD_COLOR))[..., ::-1]


def at(pixels: np.ndarray, patch: tuple[int, int]) -> np.ndarray:
    """The colour in the middle of a patch of the 4 x 4 grid."""
    y, x = (int((place + 0.5) * side / 4) for place, side in zip(patch, pixels.shape[:2], strict=True))
    return pixels[y, x].astype(int)


def inferno(grey: int) -> np.ndarray:
    """Another library's table of the page's colour map."""
    matplotlib = pytest.importorskip("matplotlib")
    return 255 * np.array(matplotlib.colormaps["inferno"](grey)[:3])


def is_blend(colour: np.ndarray, hot: bool, opacity: int) -> bool:
    """Whether it is that colour over the test image's, as opaque as it is hot. Next to a patch's middle it is cooler."""
    ground = np.array([90, 120, 60])
    values = range(215, 256) if hot else [0]
    blends = [ground + (inferno(grey) - ground) * grey / 255 * opacity / 100 for grey in values]
    return min(np.abs(blend - colour).max() for blend in blends) < 8


def test_layer_and_opacity_blend_the_map_over_the_image(run: Path, tab: Tab) -> None:
    page = tab.open(run, "#sort=number")
    hot, cold = ROWS[0].hot, (0, 3)
    for opacity in (0, 50, 100):
        slide(page, "Opacity", str(opacity))
        pixels = overlay_pixels(page)
        assert is_blend(at(pixels, hot), True, opacity) and is_blend(at(pixels, cold), False, opacity), opacity
    page.get_by_role("slider", name="Layer").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("slider", name="Layer").get_attribute("aria-valuetext") == LAYERS[1]
    pixels = overlay_pixels(page)
    assert is_blend(at(pixels, (1, 1)), True, 100) and is_blend(at(pixels, hot), False, 100)


def test_a_view_is_shared_by_its_address(run: Path, tab: Tab, browser: Any) -> None:
    page = tab.open(run)
    page.get_by_role("combobox", name="Forgery", exact=True).select_option("reenact_Fake")
    page.get_by_role("checkbox", name="TP").uncheck()
    slide(page, "Opacity", "70")
    slide(page, "Layer", "1")
    page.locator(".card").nth(1).click()
    address = page.evaluate("location.hash")
    shown = tab.shown()
    assert shown == expected(forgery=["reenact_Fake"], outcome=["FN", "FP", "TN"])
    other = Tab(browser)
    copy = other.open(run, address)
    assert other.shown() == shown and copy.evaluate("location.hash") == address
    assert copy.get_by_role("dialog").is_visible()
    assert shown[1].replace("/", ", sample ") in copy.get_by_role("dialog").inner_text()
    assert copy.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--opacity')") == "0.7"
    assert LAYERS[1] in copy.locator(".card .map").first.get_attribute("src")
    copy.evaluate("location.hash = '#forgery=gan&sort=nonsense&layer=gone'")
    until(copy, "document.querySelectorAll('.card').length === 6")
    assert other.shown() == expected(forgery=["gan"]) and not copy.get_by_role("dialog").is_visible()
    other.context.close()
    assert other.errors == []


def test_large_view_by_keyboard(run: Path, tab: Tab) -> None:
    page = tab.open(run, "#sort=number")
    page.get_by_role("button", name="What do the verdicts mean?").focus()
    page.keyboard.press("Tab")  # the first card
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    assert dialog.get_by_role("heading", level=2).inner_text().startswith("faces, sample 0:")
    for part in (
        "predicted (fake)",
        "gradcam",
        "layer_norm1",
        "real_Real",
        "-1.0000, 1.0000",
        ROWS[0].path.split("/")[-1],
    ):
        assert part in dialog.inner_text()
    page.keyboard.press("ArrowRight")
    assert dialog.get_by_role("heading", level=2).inner_text().startswith("faces, sample 1:")
    assert "sample=faces%2F1" in page.evaluate("location.hash")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # there is none before the first
    assert dialog.get_by_role("heading", level=2).inner_text().startswith("faces, sample 0:")
    assert dialog.get_by_role("button", name="Previous sample").is_disabled()
    page.keyboard.press("+")
    assert page.inner_text("#zoom") == "150 %"
    stage = page.evaluate("[stage.clientWidth, stage.firstElementChild.getBoundingClientRect().width]")
    assert abs(stage[1] - 1.5 * stage[0]) < 2
    page.keyboard.press("Escape")
    assert not dialog.is_visible() and page.evaluate("document.activeElement.dataset.key") == "faces/0"


def stage_pixels(page: Any) -> np.ndarray:
    until(page, "[...stage.querySelectorAll('img')].every(image => image.complete)")
    page.wait_for_timeout(150)
    return screenshot(page.locator("#stage .picture"))


def test_the_large_view_shows_layers_and_signs_over_the_face(run: Path, tab: Tab) -> None:
    page = tab.open(run, "#sample=faces%2F0&opacity=100")
    dialog, hot, cold = page.get_by_role("dialog"), ROWS[0].hot, (0, 3)
    pixels = stage_pixels(page)
    assert is_blend(at(pixels, hot), True, 100) and is_blend(at(pixels, cold), False, 100)
    dialog.get_by_role("combobox", name="Layer").select_option(LAYERS[1])
    pixels = stage_pixels(page)
    assert is_blend(at(pixels, (1, 1)), True, 100) and is_blend(at(pixels, hot), False, 100)
    dialog.get_by_role("combobox", name="Layer").select_option(LAYERS[0])
    dialog.get_by_role("radio", name="signed").check()
    pixels = stage_pixels(page)
    red, blue = at(pixels, hot), at(pixels, cold)  # 0.003 for, 0.001 against: a third as opaque
    assert red[0] > 190 and red[2] < 40
    assert np.abs(blue - (np.array([90, 120, 60]) * 2 + np.array([0, 76, 230])) / 3).max() < 10
    dialog.get_by_role("radio", name="image only").check()
    assert np.abs(stage_pixels(page).reshape(-1, 3).mean(axis=0) - [90, 120, 60]).max() < 3
    assert "view=image" in page.evaluate("location.hash")
    # its neighbour in the video is one click away
    dialog.get_by_role("button", name="sample 1, fake 0.310").click()
    assert dialog.get_by_role("heading", level=2).inner_text().startswith("faces, sample 1:")


def data_on_disk(folder: Path) -> tuple[Row, Row, np.ndarray]:
    """A fake with its mask and the real it was made of, as files of 96 x 64 pixels, and the fake's pixels."""
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, :48] = (10, 200, 30)
    mask = np.zeros((64, 96), np.uint8)
    mask[16:48, 24:72] = 255
    rows = []
    for forgery, label in (("real_Real", 0), ("swap_Fake", 1)):
        frame = folder / forgery / "frames" / "000" / "000.png"
        frame.parent.mkdir(parents=True)
        frame.write_bytes(cv2.imencode(".png", image + label)[1].tobytes())
        rows.append(Row(label, "faces", forgery, "000", label, 0.9 if label else 0.2, str(frame)))
    beside = folder / "swap_Fake" / "masks" / "000" / "000.png"
    beside.parent.mkdir(parents=True)
    beside.write_bytes(cv2.imencode(".png", mask)[1].tobytes())
    return rows[1], rows[0], image + 1


def test_what_lies_beside_a_fake(tmp_path: Path, tab: Tab) -> None:
    """Its file's size and hash, its mask's outline, its own resolution and its real counterpart."""
    fake, real, _ = data_on_disk(tmp_path / "data")
    write_report(write_run(tmp_path / "run", [real, fake]))
    page = tab.open(tmp_path / "run", "#sample=faces%2F1&outline=yes&full=yes&view=image")
    text = page.inner_text("#metadata")
    file = Path(fake.path).read_bytes()
    assert f"{len(file)} bytes" in text and hashlib.sha256(file).hexdigest() in text
    until(page, "document.querySelector('#stage img').naturalWidth === 96")
    until(page, "document.getElementById('told').textContent.includes('96 × 64')")
    box = page.locator("#stage .picture").bounding_box()
    assert abs(box["width"] / box["height"] - 1.5) < 0.02
    outline = page.evaluate("(() => { const b = document.querySelector('.outline path').getBBox();"
                            " return [b.x, b.y, b.x + b.width, b.y + b.height]; })()")  # fmt: skip
    assert np.abs(np.array(outline) - [25, 25, 75, 75]).max() < 0.6  # per cent of width and height
    page.get_by_role("dialog").get_by_role("button", name="sample 0, fake 0.200").click()
    assert page.get_by_role("dialog").get_by_role("heading", level=2).inner_text().startswith("faces, sample 0: real")
    assert page.get_by_role("checkbox", name="outline").count() == 0


def test_only_filters_that_choose_are_offered(tmp_path: Path, tab: Tab) -> None:
    rows = [row for row in some_rows(tmp_path) if row.forgery == "gan" and row.prob_fake > 0.5]
    run = write_run(tmp_path / "run", rows)
    write_report(run)
    page = tab.open(run)
    for name in ("Dataset", "Forgery", "Verdict", "Chosen"):
        assert page.get_by_role("combobox", name=name, exact=True).count() == 0
    assert page.get_by_role("checkbox", name="TP").count() == 0
    assert page.get_by_role("combobox", name="Sort by", exact=True).count() == 1


def test_chosen_samples_are_kept_and_become_a_figure(tmp_path: Path, tab: Tab) -> None:
    run = write_run(tmp_path / "run", some_rows(tmp_path))
    write_report(run)
    page = tab.open(run)
    for number in (0, 101):
        page.get_by_role("checkbox", name=f"choose sample {number}", exact=True).check()
    page.locator("[data-key='faces/101']").click()
    page.get_by_label("Tags").fill("odd, mouth")
    page.keyboard.press("Escape")
    until(page, "!location.hash.includes('sample')")  # the dialog tells that it was closed a moment later
    page.reload()
    chosen = page.get_by_role("combobox", name="Chosen", exact=True)
    assert chosen.locator("option").all_inner_texts() == ["all", "chosen (2)", "tag: mouth", "tag: odd"]
    chosen.select_option(label="tag: odd")
    assert tab.shown() == ["faces/101"]
    chosen.select_option(label="chosen (2)")
    assert sorted(tab.shown()) == ["faces/0", "faces/101"]
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save 2 as CSV").click()
    table = Path(str(waiting.value.path()))
    rows = list(csv.DictReader(table.open()))
    assert [(row["index"], row["dataset"], row["label"], row["tags"]) for row in rows] == [
        ("0", "faces", "0", ""), ("101", "faces", "1", "odd mouth")
    ]  # fmt: skip
    assert [row["path"] for row in rows] == [paths_of(tmp_path)[number] for number in (0, 101)]
    assert chosen_samples([f"@{table}"], None) == [0, 101] == chosen_samples(["0", "101"], None)
    with pytest.raises(InputError, match="is no number"):
        chosen_samples(["one"], None)
    page.get_by_role("button", name="Untick all").click()
    page.reload()
    assert page.get_by_role("combobox", name="Chosen", exact=True).count() == 0 and len(tab.shown()) == 24


def paths_of(folder: Path) -> dict[int, str]:
    return {row.number: row.path for row in some_rows(folder)}


def test_help_and_keys(run: Path, tab: Tab) -> None:
    page = tab.open(run)
    page.keyboard.press("?")
    text = page.get_by_role("dialog").inner_text()
    for part in ("supported", "contradicted", "evidence for FAKE", "previous, next sample", "docs/reading_maps.md"):
        assert part in text
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    assert page.get_by_role("tabpanel").get_attribute("id") == "panel-metrics"
    page.keyboard.press("/")
    page.keyboard.type("?1")  # letters of a search
    assert page.get_by_label("Path contains").input_value() == "?1" and page.get_by_role("dialog").count() == 0
    page.get_by_role("button", name="Reset").click()
    page.locator(".card").first.click()
    page.keyboard.press("v")
    assert "view=signed" in page.evaluate("location.hash")


def test_a_video_shows_its_scores_in_order(run: Path, tab: Tab) -> None:
    """Two frames of a video: the curve's points lie at their scores, and a dot opens its frame."""
    page = tab.open(run, "#sample=faces%2F100")
    scores = [row.prob_fake for row in ROWS if row.forgery == "swap_Fake" and row.video == "000"]
    points = page.locator(".plot polyline").get_attribute("points")
    assert points == " ".join(
        f"{x},{100 - 100 * score:.2f}" for x, score in zip(("25.00", "75.00"), scores, strict=True)
    )
    assert f"mean fake probability {np.mean(scores):.3f}" in page.get_by_role("dialog").inner_text()
    page.get_by_role("button", name="frame 2 of 2").click()
    assert "sample=faces%2F101" in page.evaluate("location.hash")


def test_a_view_is_saved_as_a_picture(run: Path, tab: Tab) -> None:
    page = tab.open(run, "#sample=faces%2F0&opacity=50")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save this view as PNG").click()
    assert waiting.value.suggested_filename == f"faces_sample0_{LAYERS[0]}_evidence.png"
    saved = np.asarray(cv2.imread(str(waiting.value.path())))[..., ::-1]
    picture = saved[:896, :896]
    assert is_blend(at(picture, ROWS[0].hot), True, 50) and is_blend(at(picture, (0, 3)), False, 50)
    assert saved.shape[0] > 896 and (saved[896:] < 100).any()  # the caption


def test_printed_there_is_one_exhibit_a_sheet(run: Path, tab: Tab) -> None:
    page = tab.open(run)
    pages = [page.pdf().count(b"/Type /Page\n")]
    page.locator(".card").first.click()
    pages.append(page.pdf().count(b"/Type /Page\n"))
    assert pages[0] in (len(ROWS), len(ROWS) + 1) and pages[1] == 1


# --------------------------------------------------------------------------------------------------------- bad input

HOSTILE = [
    '<script>window.hacked = 1</script>',
    '"><img src=x onerror="window.hacked = 1">',
    "line\nbreak\ttab \x1b[31m",
    "Ünïcödé 脸 😀 'quotes' \"double\"",
    "</script><script>window.hacked = 1</script>",
    "100%25 #hash ?query &amp; {{ 7*7 }}",
    os.fsdecode(b"not utf-8 \xff\xfe"),
]  # fmt: skip


def test_hostile_names_are_text_and_their_links_work(tmp_path: Path, tab: Tab) -> None:
    rows = []
    for i, name in enumerate(HOSTILE):
        frame = tmp_path / "data" / name.replace("/", "∕") / "000.png"
        frame.parent.mkdir(parents=True)
        frame.write_bytes(cv2.imencode(".png", np.full((8, 8, 3), 200, np.uint8))[1].tobytes())
        rows.append(Row(i, 'it\'s <b>a "set" %41', name, name, i % 2, 0.9, str(frame)))
    run = write_run(tmp_path / "run", rows)
    write_report(run)
    page = tab.open(run, "#sort=number")
    assert page.locator(".card").count() == len(HOSTILE) and page.locator(".lost").count() == 0
    until(page, "[...document.querySelectorAll('.card img')].slice(0, 6).every(i => i.complete && i.naturalWidth)")
    assert page.locator("h1").inner_text().startswith("it's <b>a")
    options = page.get_by_role("combobox", name="Forgery", exact=True).locator("option").all_inner_texts()[1:]
    for i, name in enumerate(HOSTILE):
        visible = name.replace("\n", "\\x0a").replace("\t", "\\x09").replace("\x1b", "\\x1b")
        visible = visible.replace("\udcff", "\\xff").replace("\udcfe", "\\xfe")
        assert options[i] == visible
        assert visible in page.locator(".card").nth(i).inner_text()
        page.locator(".card").nth(i).click()
        assert visible in page.locator("#metadata").inner_text()
        href = page.locator("#metadata a").first.get_attribute("href")
        assert href.startswith("file:///")
        assert unquote_to_bytes(href[len("file://") :]) == os.fsencode(rows[i].path)
        assert Path(os.fsdecode(unquote_to_bytes(href[len("file://") :]))).is_file()
        page.keyboard.press("Escape")
    page.get_by_role("combobox", name="Forgery", exact=True).select_option(index=1)
    assert page.locator(".card").count() == 1
    page.reload()  # the hostile name now stands in the address
    assert page.locator(".card").count() == 1
    assert page.evaluate("window.hacked") is None


def test_a_run_that_stopped_half_way(tmp_path: Path, tab: Tab) -> None:
    rows = some_rows(tmp_path)
    run = tmp_path / "run"
    write_tables(run, rows, finished=False)
    for row in rows[:5]:
        write_row(run, row)
    with sqlite3.connect(run / "run.sqlite") as database:
        database.execute(
            "DELETE FROM frame WHERE dataset = 'faces' AND idx = (SELECT max(idx) FROM frame WHERE dataset = 'faces')"
        )
    write_report(run)
    page = tab.open(run)
    text = page.inner_text(".notes")
    assert "did not finish" in text and "faces: 17 of 18 frames were evaluated" in text
    assert page.locator(".card").count() == 5
    show(page, "Metrics")
    assert page.get_by_role("row", name="faces").locator("td").first.inner_text() == "–"
    assert page.get_by_role("img", name="ROC curve of faces").count() == 1


def test_deleted_images(tmp_path: Path, tab: Tab, browser: Any) -> None:
    rows = some_rows(tmp_path)[:6]
    run = write_run(tmp_path / "run", rows)
    remove_images(run / "faces" / "sample1")
    shutil.rmtree(run / "faces" / "sample4")
    write_report(run)
    page = tab.open(run)
    assert "faces: files of 2 samples were deleted" in page.inner_text(".notes")
    assert page.locator(".card").count() == 6
    for number in (1, 4):
        assert "its images were not saved" in page.locator(f"[data-key='faces/{number}']").inner_text()
    page.locator("[data-key='faces/1']").click()
    assert "its images were not saved" in page.get_by_role("dialog").inner_text()
    # Deleted only after the page was written: the browser's own failure to load is told in the card.
    remove_images(run / "faces" / "sample0")
    later = Tab(browser)
    page = later.open(run)
    page.locator("[data-key='faces/0'] .lost").wait_for()
    assert "they were deleted" in page.locator("[data-key='faces/0']").inner_text()
    assert page.locator("[data-key='faces/5'] .map").count() == 1
    later.context.close()


def test_a_run_without_samples_and_a_folder_that_is_no_run(tmp_path: Path, tab: Tab) -> None:
    run = tmp_path / "run"
    write_tables(run, some_rows(tmp_path)[:6])
    write_report(run)
    page = tab.open(run)
    assert page.get_by_role("status").inner_text() == "This run explained no samples."
    assert page.get_by_role("slider", name="Layer", exact=True).count() == 0  # a choice of one is none
    with pytest.raises(InputError, match="holds no run"):
        write_report(tmp_path)
    changed_row(run, "run", "metrics", lambda text: "{")
    with pytest.raises(InputError, match=r"run\.sqlite: the metrics cannot be read"):
        write_report(run)


# ----------------------------------------------------------------------------------------- size, light, small, usable


@pytest.mark.slow
@pytest.mark.parametrize(("samples", "heaviest"), [(2_000, 3), (10_000, 7)])
def test_thousands_of_samples(samples: int, heaviest: int, tmp_path: Path, tab: Tab) -> None:
    """Every page is light (MB) and there within a second; of 10,000 samples of a dataset 5,000 are on it."""
    rows = [
        Row(
            i,
            "faces",
            f"method{i % 10}_Fake",
            f"{i // 8:04d}",
            1,
            0.5 + (i % 500) / 1000,
            f"/data/{i // 8:04d}/{i:05d}.png",
        )
        for i in range(samples)
    ]
    run = write_large_run(tmp_path / "run", rows)
    page_file = run / "index.html"
    page_file.write_text(render(read_run(run, SHOWN_SAMPLES), []), encoding="utf-8")
    assert page_file.stat().st_size < heaviest * 1e6
    times = []
    for _ in range(3):  # the least of three: other work on the machine only ever adds
        page = tab.open(run)
        times.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 1e9"))
    print(f"{samples} samples: first paint {min(times):.0f} ms, {page_file.stat().st_size / 1e6:.1f} MB")
    assert min(times) < 1000
    first = page.locator(".card").count()
    assert 0 < first < 300
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    until(page, f"document.querySelectorAll('.card').length > {first}")
    last = rows[-1 if samples <= SHOWN_SAMPLES else -2].path
    page.get_by_label("Path contains").fill(last.rsplit("/", 1)[1])
    until(page, "document.querySelectorAll('.card').length === 1")
    assert page.get_by_role("status").inner_text() == f"1 of {min(samples, SHOWN_SAMPLES)} explained samples"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(scheme: str, run: Path, browser: Any) -> None:
    """axe-core's rules for WCAG 2 A and AA: names, labels, roles, contrast; in the dark those that look at colours."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python").Axe()
    tags, colours = (
        ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"],
        ["color-contrast", "link-in-text-block"],
    )
    of_all, of_colours = {"type": "tag", "values": tags}, {"type": "rule", "values": colours}
    only = {"runOnly": of_all if scheme == "light" else of_colours}
    tab = Tab(browser, color_scheme=scheme, bypass_csp=True)
    fragments = [f"#tab={name}" for name in ("samples", "metrics", "faithfulness", "patterns", "files")]
    for fragment in (*fragments, "#sample=faces%2F1", "#text=nothing"):
        page = tab.open(run, fragment)
        page.reload()  # another fragment alone loads nothing
        page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
        found = axe.run(page, options=only)
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found.response["violations"]] == []
    page.keyboard.press("Escape")
    page.locator("#open-help").click()
    found = axe.run(page, options=only)
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found.response["violations"]] == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 150) == (scheme == "dark")
    tab.context.close()


def test_a_narrow_screen(run: Path, tab: Tab) -> None:
    tab.page.set_viewport_size({"width": 390, "height": 844})
    page = tab.open(run)
    card = page.locator(".card").first.bounding_box()
    assert 300 < card["width"] <= 390
    page.locator(".card").first.click()
    picture = page.locator("#stage .picture").bounding_box()
    assert 300 < picture["width"] <= 390
    assert page.evaluate("document.getElementById('large').scrollWidth <= document.getElementById('large').clientWidth")
    page.keyboard.press("Escape")
    for name in ("Samples", "Metrics", "Faithfulness", "Patterns", "Files"):
        show(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
