"""The two ways in which a command of this library ends early, each with one plain sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What the user gave cannot be used: the message says what was found, where, and what to do (exit code 2).

    `setting`: what would help ("layers", "precision", "device", "weights"); a command adds its flag for that.
    """

    def __init__(self, message: str, setting: str = "") -> None:
        super().__init__(message)
        self.setting = setting


class RunError(RuntimeError):
    """The input was fine but the run failed (exit code 1). `setting` as in InputError."""

    def __init__(self, message: str, setting: str = "") -> None:
        super().__init__(message)
        self.setting = setting


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`"did you mean 'auc'? "` for the closest of `choices`, or an empty string where nothing comes close."""
    spelled = {choice.replace("+", "p"): choice for choice in choices}  # gradcam++ is typed as gradcampp, too
    close = difflib.get_close_matches(name.replace("plusplus", "pp").replace("+", "p"), spelled, n=1, cutoff=0.5)
    return f"did you mean {spelled[close[0]]!r}? " if close else ""
