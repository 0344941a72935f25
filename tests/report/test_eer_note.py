"""Where the hosts' EER is another, the page says which is which."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from utils.gradcam_kit.report.page import _dataset_notes


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (
            {"eer": 0.4, "eer_host": 0.0},
            ["EER 0.4000 is the point", "DeepfakeBench's formula gives 0.0000 (eer_host in"],
        ),
        ({"eer": 0.25, "eer_host": 0.25}, []),
        ({"eer": 0.25, "eer_host": 0.25 + 1e-6}, []),  # no other in the digits that are shown
        ({"eer": None, "eer_host": None}, []),
        ({"eer": 0.25}, []),  # an earlier version's
    ],
)
def test_two_rates_are_explained(metrics: dict[str, Any], said: list[str]) -> None:
    data: Any = SimpleNamespace(
        name="x", metrics=metrics, complete=True, explained=0, samples=[], unreadable=0, gaps=[], label=[0], frames=1
    )
    notes = list(_dataset_notes(data, 0))
    assert len(notes) == bool(said)
    assert all(part in notes[0] for part in said)
