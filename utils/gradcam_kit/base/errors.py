"""The two errors that end a command early, each with a one-sentence message."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any


class InputError(ValueError):
    """The user's input cannot be used. The message says what was found, where, and what to do (exit code 2).

    `setting` names the setting to change ("layers", "precision", "device", "weights"); a command adds its flag for it.
    """

    def __init__(self, message: str, setting: str = "") -> None:
        super().__init__(message)
        self.setting = setting


class InputErrors(InputError):
    """Several errors as one; `each` lists them in the order of the message."""

    def __init__(self, each: list[InputError]) -> None:
        numbered = "; ".join(f"({number}) {error}" for number, error in enumerate(each, start=1))
        setting = next((error.setting for error in each if error.setting), "")
        super().__init__(f"{len(each)} things are wrong: {numbered}", setting)
        self.each = each


def run_checks(*checks: Callable[[], Any]) -> list[Any]:
    """Run all `checks` and return their results. Raise one InputError that lists all of their errors."""
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
    """The input was usable, but the run failed (exit code 1). `setting` as in InputError."""

    def __init__(self, message: str, setting: str = "") -> None:
        super().__init__(message)
        self.setting = setting


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `"did you mean 'auc'? "` for the closest of `choices`, or "" if none is close."""
    spelled = {choice.replace("+", "p"): choice for choice in choices}  # people type gradcampp for gradcam++
    close = difflib.get_close_matches(name.replace("plusplus", "pp").replace("+", "p"), spelled, n=1, cutoff=0.5)
    return f"did you mean {spelled[close[0]]!r}? " if close else ""
