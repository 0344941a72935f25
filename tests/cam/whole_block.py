"""The last block without the class token's path, to compare with or where a test's own hooks would disturb it."""

from __future__ import annotations

import pytest

from utils.gradcam_kit.explaining import capture


def take_the_whole_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until `monkeypatch` is undone no pass takes the path."""
    monkeypatch.setattr(capture, "class_token_path", lambda *given: None)
