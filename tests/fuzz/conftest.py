"""Fixtures of the fuzz tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.harness import Outcome


@pytest.fixture
def outcome(request: pytest.FixtureRequest) -> Iterator[Outcome]:
    counted = Outcome()
    yield counted
    print(f"{request.node.name}: {counted.fine} fine, {counted.refused} refused")  # pytest -s shows it
    assert min(counted.fine, counted.refused) >= 10, (counted.fine, counted.refused)


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of files are written."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)
