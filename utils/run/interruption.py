"""SIGINT and SIGTERM: the batch in hand is finished, then the run ends with the line that goes on with it."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from types import FrameType, TracebackType
from typing import Any, Sequence

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has stopped cleanly; the message is for the person."""


class Interruption:
    """Within the `with` block a first signal is only noted; a second one acts at once, as it would without."""

    def __init__(self, message: str, quiet: bool = False) -> None:
        self.asked = False
        self._message = message
        self._quiet = quiet
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Raises Interrupted if a signal has come. Called where everything so far is on disk or about to be."""
        if self.asked:
            raise Interrupted(self._message)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()
        if not self._quiet:  # print() is not safe in a signal handler
            os.write(2, b"\nstopping after the batch in hand (again: stop at once)\n")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __enter__(self) -> Interruption:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()


def resume_command(arguments: Sequence[str]) -> str:
    """What to type to go on with a run that was started with these arguments, in the same working directory."""
    launcher = [sys.executable]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        here = os.environ.get("LOCAL_WORLD_SIZE", "1")
        if here != os.environ.get("WORLD_SIZE", "1"):
            return "the same torchrun commands with --resume"
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={here}"]
    kept = [argument for argument in arguments if argument not in ("--overwrite", "--resume")]
    return " ".join(shlex.quote(part) for part in [*launcher, sys.argv[0], *kept, "--resume"])
