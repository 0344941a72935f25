"""What all commands share: flags, one line on stderr in place of a traceback, exit codes."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from .errors import InputError, RunError, did_you_mean
from .files import expanded
from .packages import outdated_packages
from .text import one_line, printable
from .version import VERSION

NO_THREAD = "can't start new thread"  # as Python says it


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Names a flag's default where there is one; "(default: None)" says nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """`--name, --short VALUE`: the value once."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class OneLineParser(argparse.ArgumentParser):
    """argparse that raises an InputError of one line in place of printing its usage; flags can't be abbreviated."""

    lists_all = "--help"

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description, allow_abbrev=False, usage="%(prog)s [options]", formatter_class=_HelpFormatter
        )
        self.register("type", Path, path_flag)  # wherever a flag's type is Path
        self.add_argument("--version", action="version", version=f"{self.prog} {VERSION}")

    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        _, unknown, names = message.rpartition("unrecognized arguments: ")
        hint = did_you_mean(names.split(" ")[0], flags) if unknown else ""
        raise InputError(f"{message}; {hint}{self.lists_all} lists every flag")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """A flag with `choices`: as argparse, but worded as an unknown value in a YAML is."""
        if action.choices is not None and value not in action.choices:
            raise unknown_value(action.option_strings[0], value, list(action.choices))


def unknown_value(flag: str, value: str, choices: Sequence[str]) -> InputError:
    """What to raise for a flag's value that is none of `choices`."""
    return InputError(f"{flag} is {value!r}; {did_you_mean(value, choices)}allowed: {', '.join(choices)}")


def percent(text: str) -> float:
    """`"5"` or `"5%"` → 0.05."""
    value = float(text.rstrip("% "))
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 100 percent")
    return value / 100


def shard(text: str) -> list[int]:
    """`"3/8"` → [3, 8]: number and count."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count) <= 100_000):
        raise argparse.ArgumentTypeError(f"{text!r} is no part such as 3/8, the third of eight")
    return [int(number), int(count)]


def whole(least: int) -> Callable[[str], int]:
    """Reads a whole number of at least `least`."""

    def read(text: str) -> int:
        with suppress(ValueError):
            if int(text) >= least:
                return int(text)
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least {least}")

    return read


positive = whole(1)


def path_text(text: str) -> str:
    """Reads a path as `files.expanded` does."""
    try:
        return expanded(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def path_flag(text: str) -> Path:
    """As `path_text`."""
    return Path(path_text(text))


def run_command(main: Callable[[Sequence[str]], int], hints: Mapping[str, str] | None = None) -> NoReturn:
    """Call `main`; exit with its code, 2 for unusable input, 1 for a failed run. `hints`: `setting` → what helps.

    Under torchrun each rank prints its RunError; an InputError, which all ranks meet alike, is printed once per node.
    """
    hints, first_here = hints or {}, _is_first_here()
    sys.stdout, sys.stderr = _lasting(sys.stdout), _lasting(sys.stderr)
    try:
        if outdated := outdated_packages():
            raise InputError(outdated)
        code = main(sys.argv[1:])
    except InputError as error:
        code = _print_error(error, hints.get(error.setting), 2) if first_here else 2
    except RunError as error:
        code = _print_error(error, hints.get(error.setting), 1)
    except OSError as error:  # the machine's, or of a file: no fault of the program's
        code = _print_error(f"{error.filename}: {one_line(error)}" if error.filename else one_line(error), None, 1)
    except RuntimeError as error:
        if NO_THREAD not in str(error):
            raise
        code = _print_error("this machine or account allows no further thread: end other programs, then again", None, 1)
    except KeyboardInterrupt as stop:
        if first_here:
            print(str(stop) or "interrupted", file=sys.stderr)  # as it is: it may hold a command to type
        code = 130
    sys.stdout.flush()  # here and not at the interpreter's end, which would complain of a reader that has gone
    sys.exit(code)


def _is_first_here() -> bool:
    """Whether this process prints what others on this machine would print too."""
    rank, size = (os.environ.get(name, "") for name in ("LOCAL_RANK", "WORLD_SIZE"))
    return not (rank.isdigit() and size.isdigit() and 0 < int(rank) < int(size))


class _Lasting:
    """A stream whose reader may go away (`| head`): what is written from then on is lost, the run is not."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _lasting(stream: Any) -> Any:
    """stdout or stderr, as a command uses it: whatever happens to it, or is printed, does not end the command."""
    if stream is None:  # closed before the start
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")  # else a file name that the terminal cannot show would end the run
    return _Lasting(stream)


def _print_error(error: object, hint: str | None, code: int) -> int:
    message = f"{error} ({hint})" if hint else str(error)
    print("error: " + printable(" ".join(message.split())), file=sys.stderr)
    return code
