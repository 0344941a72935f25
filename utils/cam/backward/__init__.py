"""The backward pass: its rules (`balanced.py`), and derivatives that are got from less (`derivatives.py`)."""

from __future__ import annotations

from utils.cam.backward.balanced import (
    BALANCED,
    PLAIN,
    Activations,
    attention_of,
    backward_rules,
    gates_in,
)
from utils.cam.backward.derivatives import by_factor
from utils.cam.backward.quick_gelu import quick_gelu_in_one

__all__ = [
    "BALANCED",
    "PLAIN",
    "Activations",
    "attention_of",
    "backward_rules",
    "by_factor",
    "gates_in",
    "quick_gelu_in_one",
]
