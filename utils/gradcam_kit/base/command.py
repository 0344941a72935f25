"""Shared by all commands: flags, errors as one line on stderr, exit codes."""

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

NO_THREAD = "can't start new thread"  # Python's own message


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Prints a flag's default unless it is None or False."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """Return `--name, --short VALUE`, with the value once."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises a one-line InputError instead of printing its usage; flags can't be abbreviated."""

    lists_all = "--help"

    def __init__(self, command: str, description: str) -> None:
        """`command`: the line to type, without flags."""
        super().__init__(
            description=description, allow_abbrev=False, usage=f"{command} [options]", formatter_class=_HelpFormatter
        )
        self.register("type", Path, lambda text: Path(path_text(text)))  # for every flag whose type is Path
        self.add_argument("--version", action="version", version=f"{self.prog} {VERSION}")

    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        _, unknown, names = message.rpartition("unrecognized arguments: ")
        hint = did_you_mean(names.split(" ")[0], flags) if unknown else ""
        raise InputError(f"{message}; {hint}{self.lists_all} lists every flag")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise the same InputError for an unknown choice as for an unknown value in a YAML."""
        if action.choices is not None and value not in action.choices:
            raise unknown_value(action.option_strings[0], value, list(action.choices))


def unknown_value(flag: str, value: str, choices: Sequence[str]) -> InputError:
    """Return the error for a flag's value that is not one of `choices`."""
    return InputError(f"{flag} is {value!r}; {did_you_mean(value, choices)}allowed: {', '.join(choices)}")


def percent(text: str) -> float:
    """Parse `"5"` or `"5%"` as 0.05."""
    value = float(text.rstrip("% "))
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 100 percent")
    return value / 100


def shard(text: str) -> list[int]:
    """Parse `"3/8"` as [3, 8]: number and count."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count) <= 100_000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shard such as 3/8, the third of eight")
    return [int(number), int(count)]


def whole(least: int) -> Callable[[str], int]:
    """Return a parser of whole numbers of at least `least`."""

    def read(text: str) -> int:
        with suppress(ValueError):
            if int(text) >= least:
                return int(text)
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least {least}")

    return read


positive = whole(1)


def path_text(text: str) -> str:
    """Parse a path: replace `~` and `$VARIABLES` in it."""
    try:
        return expanded(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run_command(main: Callable[[Sequence[str]], int], hints: Mapping[str, str] | None = None) -> NoReturn:
    """Call `main` and exit: with its code, with 2 for unusable input, with 1 for a failed run.

    `hints` maps an error's `setting` to the flag that helps. Under torchrun each rank prints its RunError. All ranks
    meet the same InputError, so each node prints it once.
    """
    hints, first_here = hints or {}, _is_first_here()
    sys.stdout, sys.stderr = _pipe_safe(sys.stdout), _pipe_safe(sys.stderr)
    try:
        if outdated := outdated_packages():
            raise InputError(outdated)
        code = main(sys.argv[1:])
    except InputError as error:
        code = _print_error(error, hints.get(error.setting), 2) if first_here else 2
    except RunError as error:
        code = _print_error(error, hints.get(error.setting), 1)
    except OSError as error:  # caused by the machine or by a file, not by the program
        code = _print_error(f"{error.filename}: {one_line(error)}" if error.filename else one_line(error), None, 1)
    except RuntimeError as error:
        if NO_THREAD not in str(error):
            raise
        code = _print_error(
            "this machine or account allows no more threads: end other programs, then try again", None, 1
        )
    except KeyboardInterrupt as stop:
        if first_here:
            print(str(stop) or "interrupted", file=sys.stderr)  # unchanged: it may contain a command to type
        code = 130
    sys.stdout.flush()  # here: at its exit the interpreter would complain about a reader that has gone
    sys.exit(code)


def _is_first_here() -> bool:
    """Tell whether this process is the one that prints for all processes on this machine."""
    rank, size = (os.environ.get(name, "") for name in ("LOCAL_RANK", "WORLD_SIZE"))
    return not (rank.isdigit() and size.isdigit() and 0 < int(rank) < int(size))


class _BrokenPipeSafe:
    """A stream whose reader may go away (`| head`): later output is lost, the run goes on."""

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


def _pipe_safe(stream: Any) -> Any:
    """Wrap stdout or stderr so that no failure to write ends the command."""
    if stream is None:  # closed before the start
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")  # a file name that the terminal cannot show must not end the run
    return _BrokenPipeSafe(stream)


def _print_error(error: object, hint: str | None, code: int) -> int:
    message = f"{error} ({hint})" if hint else str(error)
    print("error: " + printable(" ".join(message.split())), file=sys.stderr)
    return code
