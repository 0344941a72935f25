"""The processes that share a run under torchrun. What they exchange is small: lists of batches, and counts.

Predictions go by files (`utils.results.journal`), so all processes need the same output folder. Only CPU objects
travel, by gloo, also where the detectors are on GPUs.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Callable, NamedTuple, TypeVar

import torch

from utils.errors import InputError, RunError

T = TypeVar("T")

# A process that dies ends the others' waiting at once; this is for a machine that vanishes without a word. It is also
# how long the fastest process waits for the slowest.
PATIENCE = timedelta(hours=2)


class Processes(NamedTuple):
    """This process (`rank` of `size`, `local_rank` on this machine) among those of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def start(cls) -> Processes:
        """Meet the others, if torchrun started more than one process. Raises RunError."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1 or "RANK" not in os.environ:
            return cls()
        import torch.distributed as dist

        # Its functions keep the group of the time they are defined as a default. Imported later, by transformers say,
        # they keep gloo's threads alive into the end of the interpreter, which then at times aborts.
        import torch.distributed.nn  # noqa: F401

        own = cls(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))
        own._together(lambda: dist.init_process_group("gloo", timeout=PATIENCE))
        return own

    @property
    def first(self) -> bool:
        """Whether this is the process that writes the tables and speaks to the person."""
        return self.rank == 0

    def share(self, numbers: list[T]) -> list[T]:
        """This process's part: every `size`-th."""
        return numbers[self.rank :: self.size]

    def agreed(self, value: T) -> T:
        """The first process's value, on every process."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        self._together(lambda: dist.broadcast_object_list(box, src=0))
        return box[0]

    def gathered(self, value: T) -> list[T]:
        """Every process's value, on every process. It also waits for all of them."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[T] = [value] * self.size
        self._together(lambda: dist.all_gather_object(values, value))
        return values

    def first_does(self, work: Callable[[], T]) -> T:
        """The result of `work` on the first process, for every process; its errors end the others quietly."""
        if not self.first:
            result, code = self.agreed((None, 0))
            if code:
                raise SystemExit(code)
            return result  # type: ignore[return-value]  # the first process's value
        try:
            result = work()
        except InputError:
            self.agreed((None, 2))
            raise
        except RunError:
            self.agreed((None, 1))
            raise
        return self.agreed((result, 0))[0]

    def device_name(self, asked: str) -> str:
        """`--device` for this process: each process of a machine has a CUDA device of its own. Raises RunError."""
        if self.size == 1 or asked not in ("auto", "cuda"):
            return asked
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not there:
            return "cpu" if asked == "auto" and not self.first else asked
        if self.local_rank >= there:
            raise RunError(
                f"process {self.rank}: this machine has {there} CUDA devices, fewer than processes;"
                f" use --nproc_per_node={there}"
            )
        return f"cuda:{self.local_rank}"

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *raised: object) -> None:
        """Part from the others."""
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()

    def _together(self, work: Callable[[], object]) -> None:
        try:
            work()
        except RuntimeError as error:
            raise RunError(
                f"process {self.rank} of {self.size}: another process of this run has ended or does not answer;"
                " see its message above, then go on with --resume"
            ) from error
