"""The two ways in which a command of this library ends early, each with one plain sentence."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any


class InputError(ValueError):
    """What the user gave cannot be used: the message says what was found, where, and what to do (exit code 2).

    `setting`: what would help ("layers", "precision", "device", "weights"); a command adds its flag for that.
    """

    def __init__(self, message: str, setting: str = "") -> None:
        super().__init__(message)
        self.setting = setting


class InputErrors(InputError):
    """Several at once; `each` are they, in the order in which they are said."""

    def __init__(self, each: list[InputError]) -> None:
        told = "; ".join(f"({number}) {error}" for number, error in enumerate(each, start=1))
        super().__init__(
            f"{len(each)} things are wrong: {told}", next((one.setting for one in each if one.setting), "")
        )
        self.each = each


def said_at_once(*checks: Callable[[], Any]) -> list[Any]:
    """What all `checks` return. Raises InputError with everything that any of them finds wrong, in their order."""
    results, wrong = [], []
    for check in checks:
        try:
            results.append(check())
        except InputError as error:
            wrong += error.each if isinstance(error, InputErrors) else [error]
    if wrong:
        raise wrong[0] if len(wrong) == 1 else InputErrors(wrong)
    return results


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
