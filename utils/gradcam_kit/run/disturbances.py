"""Interruptions of a run: SIGINT and SIGTERM, which end it cleanly, and batches that do not fit into memory."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch

from ..base.errors import RunError
from ..base.text import one_line
from ..settings.run_options import without_flags

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
DEAD_WORKER = "DataLoader worker"  # in PyTorch's messages about one


class Interrupted(KeyboardInterrupt):
    """The run stopped cleanly after a signal; the message is for the user."""


class SignalGuard:
    """Raises Interrupted on the first signal inside the `with` block. Files are complete at any moment.

    Inside `between_batches` the first signal waits for the current batch. A second signal acts at once.
    """

    def __init__(self, message: str, quiet: bool = False) -> None:
        self.requested, self._message, self._quiet = False, message, quiet
        self._waits = False
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Raise Interrupted if a signal has come. Call it when all results so far are on disk, or will be."""
        if self.requested:
            raise Interrupted(self._message)

    @contextmanager
    def between_batches(self) -> Iterator[None]:
        """Let a first signal wait for `check` inside the block."""
        self.check()
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()
        if not self._waits:
            raise Interrupted(self._message)
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
    """Return the command that resumes a run with these arguments, from the same working directory."""
    launcher = [sys.executable]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        here = os.environ.get("LOCAL_WORLD_SIZE", "1")
        if here != os.environ.get("WORLD_SIZE", "1"):
            return "the same torchrun commands with --resume"
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={here}"]
    return shlex.join([*launcher, sys.argv[0], *without_flags(arguments), "--resume"])


class SplitOnOutOfMemory:
    """Runs work over batches in parts of at most `most` images that fit into memory.

    After a failure, parts stay at half the failed size for the rest of the run, because a failed attempt costs time.
    Another size of parts may change the last bits of a result.
    """

    def __init__(self, what: str, most: int | None = None) -> None:
        self.what, self.most = what, most

    def run(self, work: Callable[[slice], T], size: int) -> list[T]:
        """Run `work` over slices of `size` images; return the results in order. RunError if one image does not fit."""
        results: list[T] = []
        start = 0
        while start < size:
            part = slice(start, min(size, start + (self.most or size)))
            try:
                results.append(work(part))
                start = part.stop
                continue
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except block: the error's traceback would keep the batch's tensors alive.
            self._halve(part.stop - part.start)
        return results

    def _halve(self, failed: int) -> None:
        if failed == 1:
            raise RunError(
                f"not enough memory for {self.what} a single image; explain later layers, or use another device"
            )
        self.most = (failed + 1) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(
            f"\nout of memory while {self.what} {failed} images: continuing with at most {self.most} at a time"
            f" (--batch_size {self.most} avoids the failed attempt)",
            file=sys.stderr,
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an allocation failed on any device. The CPU's allocator raises a plain RuntimeError."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("DefaultCPUAllocator", "not enough memory", "out of memory"))
    )


@contextmanager
def one_line_errors(folder: Path, guard: SignalGuard) -> Iterator[None]:
    """Turn failures of the machine into a one-line RunError, or, after a signal, into Interrupted."""
    go_on = "finished files are complete: solve this, then continue with --resume"
    worker_gone = "a process that decodes images was killed ({}), perhaps out of memory: use fewer --workers; "
    try:
        yield
    except ConnectionError as error:  # a decoding process died while sending a batch
        guard.check()
        report_workers_once()
        raise RunError(worker_gone.format(one_line(error)) + go_on) from error
    except OSError as error:
        guard.check()  # a signal to the whole group also ends decoding processes and other ranks
        raise RunError(f"{error.filename or folder}: {one_line(error)}; {go_on}") from error
    except MemoryError as error:
        raise RunError(f"out of memory outside the detector (decoding or drawing an image); {go_on}") from error
    except RuntimeError as error:
        guard.check()
        if isinstance(error, RunError) or DEAD_WORKER not in str(error):
            raise
        report_workers_once()
        raise RunError(worker_gone.format(one_line(error)) + go_on) from error


def report_workers_once() -> None:
    """Keep PyTorch from printing a traceback about a dead decoding process that was already reported.

    Its handler of SIGCHLD may find the process once more while the data loader is deleted, where errors are printed.
    """
    usual = sys.unraisablehook

    def hook(found: sys.UnraisableHookArgs) -> None:
        if DEAD_WORKER not in str(found.exc_value):
            usual(found)

    sys.unraisablehook = hook
