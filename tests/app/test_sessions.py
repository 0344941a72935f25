"""Who may speak to the live app, and what it keeps of those who did. Needs no Gradio."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.gradcam_kit.app import sessions as module
from utils.gradcam_kit.app.guard import Guard
from utils.gradcam_kit.app.live_detector import OpenedFile, region_of
from utils.gradcam_kit.app.sessions import Sessions
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.drawing.overlays import PastedCrop
from utils.gradcam_kit.media.faces import View


async def through(_: Any, __: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


def status(
    guard: Guard, *headers: tuple[str, str], method: str = "GET", path: str = "/config", kind: str = "http"
) -> int:
    """The status of the answer; 1008 of a closed websocket."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": kind, "method": method, "path": path, "headers": [(a.encode(), b.encode()) for a, b in headers]}
    asyncio.run(guard(scope, send, send))
    return int(sent[0].get("status", sent[0].get("code", 0)))


def guard(tmp_path: Path, host: str = "127.0.0.1") -> Guard:
    return Guard(through, host, tmp_path, 1_000)


@pytest.mark.parametrize(
    ("host", "name", "allowed"),
    [
        ("127.0.0.1", "127.0.0.1:7860", True), ("127.0.0.1", "localhost:9000", True), ("127.0.0.1", "LOCALHOST.", True),
        ("127.0.0.1", "[::1]:7860", True), ("127.0.0.1", "evil.example", False), ("127.0.0.1", "192.168.0.7", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False), ("127.0.0.1", "localhost.evil.example:7860", False),
        ("127.0.0.1", "0.0.0.0:7860", False), ("127.0.0.1", "user@evil.example", False), ("127.0.0.1", "", False),
        ("127.0.0.1", "[::1", False), ("127.0.0.1", "evil.example#localhost", False), ("localhost", "localhost", True),
        ("0.0.0.0", "192.168.0.7:7860", True), ("0.0.0.0", "[fe80::1]:7860", True), ("0.0.0.0", "evil.example", False),
        ("0.0.0.0", "0.0.0.0:7860", True), ("::", "10.1.2.3", True), ("box.lan", "box.lan:80", True),
        ("box.lan", "evil.lan", False), ("192.168.0.7", "192.168.0.7", True),
    ],
)  # fmt: skip
def test_the_names_that_the_app_answers_to(tmp_path: Path, host: str, name: str, allowed: bool) -> None:
    assert (status(guard(tmp_path, host), ("host", name)) == 200) is allowed


def test_this_machines_name_is_one_where_others_are_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Workstation")
    assert status(guard(tmp_path, "0.0.0.0"), ("host", "workstation:7860")) == 200
    assert status(guard(tmp_path, "127.0.0.1"), ("host", "workstation:7860")) == 400


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ([("origin", "http://127.0.0.1:7860")], 200), ([("origin", "HTTP://127.0.0.1:7860")], 200), ([], 200),
        ([("origin", "http://evil.example")], 403), ([("origin", "null")], 403), ([("origin", "http://localhost:7860")], 403),
        ([("origin", "http://127.0.0.1:8000")], 403), ([("origin", "http://127.0.0.1:7860.evil.example")], 403),
        ([("origin", "http://127.0.0.1:7860"), ("origin", "http://evil.example")], 403), ([("origin", "file://")], 403),
        ([("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")], 403),
        ([("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], 200), ([("host", "evil.example")], 400),
    ],
)  # fmt: skip
def test_pages_of_others_are_refused(tmp_path: Path, headers: list[tuple[str, str]], wanted: int) -> None:
    for method, path in (("GET", "/config"), ("POST", "/gradio_api/upload"), ("OPTIONS", "/gradio_api/queue/join")):
        assert status(guard(tmp_path), ("host", "127.0.0.1:7860"), *headers, method=method, path=path) == wanted
    closed = 1008 if wanted != 200 else 200
    assert status(guard(tmp_path), ("host", "127.0.0.1:7860"), *headers, kind="websocket") == closed


def test_uploads_fill_no_disk(tmp_path: Path) -> None:
    upload = {"method": "POST", "path": "/gradio_api/upload"}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(bytes(1_000))
    assert status(guard(tmp_path), ("host", "localhost"), **upload) == 200
    (tmp_path / "a" / "y.png").write_bytes(b"1")
    assert status(guard(tmp_path), ("host", "localhost"), **upload) == 507
    assert status(guard(tmp_path), ("host", "localhost")) == 200


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_files_go_with_the_session(tmp_path: Path) -> None:
    kept = Sessions(tmp_path)
    for name in "ab":
        session = kept.of(name)
        session.file("numbers.json", b"{}")
        session.file("numbers.json", b"{}")  # instead of the first
        (tmp_path / f"{name}.png").write_bytes(b"1")
        (tmp_path / "both.png").write_bytes(b"1")
        session.uploads |= {tmp_path / f"{name}.png", tmp_path / "both.png"}
    (tmp_path / "copy.webp").write_bytes(b"1")  # Gradio's own
    kept.leave("a")
    kept.leave("never seen")
    assert files(tmp_path) == {"numbers.json", "b.png", "both.png", "copy.webp"}
    old = time.time() - module.LEFTOVER - 1
    for name in ("copy.webp", "b.png"):
        os.utime(tmp_path / name, (old, old))
    kept.leave("never seen")
    assert files(tmp_path) == {"numbers.json", "b.png", "both.png"}
    kept.leave("b")
    assert files(tmp_path) == set()


def test_sessions_are_bounded_and_idle_ones_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Sessions(tmp_path)
    for number in range(100):
        kept.of(str(number)).file("x", b"1")
    assert len(list(tmp_path.iterdir())) == module.MOST_SESSIONS
    assert kept.of("99").folder.is_dir()
    later = time.monotonic() + module.IDLE + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    kept.of("new")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_photograph_that_was_made_smaller_is_pasted_where_it_was() -> None:
    """A crop of 20 pixels from (40, 60) on in a photograph of 400; kept at a quarter of its size."""
    crop = np.full((20, 20, 3), 255, np.uint8)
    view = View(crop, np.array([[1.0, 0, -40], [0, 1.0, -60]]))
    small = np.zeros((100, 100, 3), np.uint8)
    matrix = OpenedFile(small, [view], "", 1, 0.25).matrix_in_photo(0)
    assert matrix is not None
    found = np.argwhere(PastedCrop(small, matrix).over(crop)[..., 0] > 127)
    np.testing.assert_allclose(found.min(0), [15, 10], atol=1)
    np.testing.assert_allclose(found.max(0), [19, 14], atol=1)


def test_painted_layers_of_two_sizes() -> None:
    with pytest.raises(InputError, match="different sizes"):
        region_of([np.zeros((4, 4, 4)), np.zeros((5, 4, 4))])
