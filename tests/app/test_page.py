"""The live app as a person uses it: a process, a browser, a dropped file, a painted region."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.helpers.paths import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)
pytest.importorskip("gradio", reason="needs the optional package gradio: pip install gradio")
playwright_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Its address, and the folder in which it may leave temporary files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary = tmp_path_factory.mktemp("temporary")
    command = [sys.executable, "-m", "utils.app", "--port", str(port), "--device", "cpu", "--max_upload", "1"]
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("open http://127.0.0.1"):
            break
    yield f"http://127.0.0.1:{port}", temporary
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert not list(temporary.glob("gradcam_app_*"))  # nothing is kept


@pytest.fixture
def page(app: tuple[str, Path]) -> Iterator[Any]:
    with playwright_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1440, "height": 1300})
        page.elsewhere = []
        page.on("request", lambda request: page.elsewhere.append(request.url) if is_elsewhere(request.url) else None)
        page.goto(app[0])
        page.wait_for_selector("#file input[type=file]", state="attached")
        yield page
        browser.close()


def is_elsewhere(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1", "data:", "blob:"))


def drop(page: Any, file: Path) -> None:
    page.set_input_files("#file input[type=file]", str(file))


def test_a_dropped_image_is_explained_and_a_region_brushed_out(page: Any, made_face: Path, tmp_path: Path) -> None:
    drop(page, made_face)
    page.wait_for_selector("#verdict:has-text('fake probability')", timeout=60_000)
    with page.expect_download() as download:
        page.click("#numbers")
    numbers = json.loads(Path(download.value.path()).read_text())
    said = re.search(r"fake probability ([0-9.]+)", page.inner_text("#verdict"))
    assert said and float(said[1]) == pytest.approx(numbers["prob_fake"], abs=1e-3)
    with page.expect_download() as download:
        page.click("#figure")
    figure = cv2.imread(str(download.value.path()))
    assert figure is not None and figure.shape[1] > 2 * figure.shape[0] - 10
    page.click("#ask")
    page.wait_for_selector("#answer:has-text('nothing is painted')")
    box = page.locator("#editor canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 30, y)
    page.mouse.down()
    for step in range(20):
        page.mouse.move(x - 30 + 3 * step, y + step % 4)
    page.mouse.up()
    page.wait_for_timeout(500)
    page.click("#ask")
    page.wait_for_selector("#answer:has-text('fill by blur or grey')")
    page.get_by_label("blur").check()
    page.click("#ask")
    page.wait_for_selector("#answer:has-text('without the region')")
    found = re.search(r"Fake probability ([0-9.]+), without the region ([0-9.]+)", page.inner_text("#answer"))
    assert found and float(found[1]) == pytest.approx(numbers["prob_fake"], abs=1e-3)
    assert page.elsewhere == []


def test_the_example_is_found_and_goes_without_its_mouth(page: Any) -> None:
    """The forged mouth: with the real one in its place the toy detector calls the face real."""
    page.click("#example")
    page.wait_for_selector("#verdict:has-text('fake: fake probability')", timeout=60_000)
    page.wait_for_selector("#thumbnail img")
    assert not page.locator("#whole").is_visible()
    box = page.locator("#editor canvas").first.bounding_box()
    for row in range(8):
        y = box["y"] + box["height"] * (0.58 + 0.03 * row)
        page.mouse.move(box["x"] + 0.3 * box["width"], y)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.7 * box["width"], y, steps=12)
        page.mouse.up()
    page.wait_for_timeout(500)
    page.click("#ask")
    page.wait_for_selector("#answer:has-text('filled by paired real')")
    found = re.search(r"Fake probability ([0-9.]+), without the region ([0-9.]+)", page.inner_text("#answer"))
    assert found and float(found[1]) > 0.8 > 0.5 > float(found[2])


def test_what_is_no_image_is_a_sentence(page: Any, tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no image at all")
    drop(page, tmp_path / "note.png")
    page.wait_for_selector("#verdict:has-text('note.png cannot be used: not an image')")


@pytest.fixture
def made_face(tmp_path: Path) -> Path:
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8), (200, 200))
    cv2.imwrite(str(tmp_path / "face.png"), image)
    return tmp_path / "face.png"
