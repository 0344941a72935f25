"""The backward pass: its rules (`balanced.py`) and cheaper derivatives (`derivatives.py`)."""

from __future__ import annotations

from .balanced import (
    BALANCED,
    PLAIN,
    Activations,
    attention_of,
    backward_rules,
    can_balance,
    gates_in,
)
from .derivatives import by_factor

__all__ = [
    "BALANCED",
    "PLAIN",
    "Activations",
    "attention_of",
    "backward_rules",
    "by_factor",
    "can_balance",
    "gates_in",
]
