"""Which frames are explained, against the rule written out by hand."""

from __future__ import annotations

import numpy as np

from utils.gradcam_kit.data.frame import Frame
from utils.gradcam_kit.run.predictions import Predictions


def predictions() -> Predictions:
    """Three forgeries of two videos of two frames, all found but for the last; and four reals, two called fake."""
    frames: list[Frame] = []
    scores: list[float] = []
    for f, forgery in enumerate("abc"):
        for v in range(2):
            for i in range(2):
                frames.append(Frame(f"{forgery}{v}{i}.png", "set", forgery, str(v), 1, len(frames)))
                scores.append(0.95 - 0.1 * f - 0.02 * v - 0.001 * i)
    scores[-1] = 0.2
    for i, score in enumerate((0.1, 0.9, 0.6, 0.3)):
        frames.append(Frame(f"r{i}.png", "set", "real", "0", 0, len(frames)))
        scores.append(score)
    made = Predictions(frames)
    made.prob_fake[:] = np.array(scores, dtype=np.float32)
    return made


def test_a_mixed_choice_has_found_fakes_of_all_forgeries_and_mistakes() -> None:
    made = predictions()
    chosen = made.choose(8, True, "mixed", 0)
    # three mistakes there are: 11, 13 and 14; of the found ones each forgery's best video, then its second
    best, second = [0, 4, 8], [2, 6]
    assert chosen == sorted([*best, *second, 11, 13, 14])
    assert made.choose(5, True, "mixed", 0) == sorted([0, 4, 11, 13, 14])  # two of five, and all mistakes
    assert made.choose(4, True, "mixed", 0) == sorted([0, 11, 13, 14])  # 8 // 5 = 1, and the three mistakes
    assert made.choose(None, True, "mixed", 0) == [11, 13, 14]
    few = made.choose(3, True, "mixed", 0)
    assert few == sorted([0, 13, 11])  # the most confident mistakes: 0.9 real called fake, 0.8 fake called real
