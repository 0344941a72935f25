"""What a probability of fake means: the class, and how sure the detector is of it."""

from __future__ import annotations

CLASS_NAMES = ("Real", "Fake")
UNKNOWN = -1  # label of an image that belongs to no dataset
THRESHOLD = 0.5  # fake above it, as the host counts


def predicted(prob_fake: float) -> int:
    """0 real, 1 fake."""
    return int(prob_fake > THRESHOLD)


def confidence(prob_fake: float) -> float:
    """Probability of the predicted class, at least 0.5."""
    return prob_fake if predicted(prob_fake) else 1.0 - prob_fake
