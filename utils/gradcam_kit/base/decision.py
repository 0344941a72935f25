"""From the probability of fake to the predicted class and its confidence."""

from __future__ import annotations

CLASS_NAMES = ("Real", "Fake")
UNKNOWN = -1  # the label of an image without a dataset
THRESHOLD = 0.5  # above it an image counts as fake, as in the host


def predicted_class(prob_fake: float) -> int:
    """Return the predicted class: 0 real, 1 fake."""
    return int(prob_fake > THRESHOLD)


def confidence(prob_fake: float) -> float:
    """Return the probability of the predicted class, at least 0.5."""
    return prob_fake if predicted_class(prob_fake) else 1.0 - prob_fake
