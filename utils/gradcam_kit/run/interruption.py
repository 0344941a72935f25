"""SIGINT and SIGTERM: the current batch is finished, then the run ends and prints the command that resumes it."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The run stopped cleanly after a signal; the message is for the person."""


class SignalGuard:
    """Within the `with` block a first signal is only recorded; a second one acts at once, as it would without."""

    def __init__(self, message: str, quiet: bool = False) -> None:
        self.requested, self._message, self._quiet = False, message, quiet
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Raises Interrupted if a signal has come. Called where everything so far is on disk or about to be."""
        if self.requested:
            raise Interrupted(self._message)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()
        if not self._quiet:  # print() is not safe in a signal handler
            os.write(2, b"\nstopping after the current batch (again: stop at once)\n")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __enter__(self) -> SignalGuard:
        self._before = {number: signal.signal(number, self._record) for number in SIGNALS}
        return self

    def __exit__(self, *raised: object) -> None:
        self._restore()


def resume_command(arguments: Sequence[str]) -> str:
    """The command that resumes a run started with these arguments in the same working directory."""
    launcher = [sys.executable]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        here = os.environ.get("LOCAL_WORLD_SIZE", "1")
        if here != os.environ.get("WORLD_SIZE", "1"):
            return "the same torchrun commands with --resume"
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={here}"]
    kept = [argument for argument in arguments if argument not in ("--overwrite", "--resume")]
    return " ".join(shlex.quote(part) for part in [*launcher, sys.argv[0], *kept, "--resume"])
