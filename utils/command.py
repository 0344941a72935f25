"""How a command of this library speaks: one plain line on stderr and an exit code, no traceback for mistakes."""

from __future__ import annotations

import argparse
import io
import os
import sys
from typing import Callable, Mapping, NoReturn, Sequence

from utils.errors import InputError, RunError, did_you_mean
from utils.packages import complaint
from utils.text import printable


class OneLineParser(argparse.ArgumentParser):
    """argparse whose complaint is one InputError in place of a page of usage; flags can't be abbreviated."""

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        unknown = message.rpartition("unrecognized arguments: ")[2].split(" ")[0] if "unrecognized" in message else ""
        hint = did_you_mean(unknown, flags) if unknown else ""
        raise InputError(f"{message}; {hint}--help lists every flag")


def percent(text: str) -> float:
    """`"5"` or `"5%"` → 0.05."""
    value = float(text.rstrip("% "))
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 100 percent")
    return value / 100


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return value


def run_command(main: Callable[[Sequence[str]], int], hints: Mapping[str, str] | None = None) -> NoReturn:
    """Call `main` with the arguments and leave with its exit code: 2 for unusable input, 1 for a failed run.

    `hints`: an error's `setting` → the flag that helps, which its message then ends with.
    Of several processes under torchrun each tells of its own failure, one a machine of what all of them meet alike.
    """
    first_here = os.environ.get("LOCAL_RANK", "0") == "0"
    if isinstance(sys.stdout, io.TextIOWrapper):  # no name of a file must end a run because the terminal lacks a letter
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        too_old = complaint()
        if too_old:
            raise InputError(too_old)
        code = main(sys.argv[1:])
    except InputError as error:
        code = _complain(error, (hints or {}).get(error.setting), 2) if first_here else 2
    except RunError as error:
        code = _complain(error, (hints or {}).get(error.setting), 1)
    except KeyboardInterrupt as stop:
        if first_here:
            print(str(stop) or "interrupted", file=sys.stderr)  # as it is: it may hold a command to type
        code = 130
    sys.exit(code)


def _complain(error: object, hint: str | None, code: int) -> int:
    message = f"{error} ({hint})" if hint else str(error)
    print("error: " + printable(" ".join(message.split())), file=sys.stderr)
    return code
