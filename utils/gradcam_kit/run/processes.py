"""The processes (ranks) that share a run under torchrun. They exchange only lists of batches, and counts.

Predictions and maps are exchanged through files, one database per rank, so all ranks need the same output folder. Only
CPU objects travel, through gloo, even if the detectors are on GPUs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist

from ..base.errors import InputError, RunError
from ..base.text import shortened
from ..store.run_folder import RunFolder

T = TypeVar("T")

# If a process dies, the others stop waiting at once. This limit is for a node that drops off the network, and for the
# fastest rank waiting for the slowest.
PATIENCE = timedelta(hours=2)
JOINING = timedelta(minutes=10)  # the first processes wait so long for the last ones to start
MAX_PROCESSES = 100_000


class Processes(NamedTuple):
    """This process (`rank` of `size`, `local_rank` on this machine) among those of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def start(cls) -> Processes:
        """Join the processes that torchrun started. InputError: a wrong environment; RunError: no answer."""
        size = _number("WORLD_SIZE", 1, 1, MAX_PROCESSES)
        if size == 1:
            return cls()
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            raise InputError(
                f"the environment has WORLD_SIZE={size} but not {', '.join(missing)}: start the processes with"
                " torchrun, or unset WORLD_SIZE to run alone"
            )
        _number("MASTER_PORT", 0, 0, 65535)
        rank = _number("RANK", 0, 0, size - 1)  # a higher rank would be ignored, and all would wait
        local_rank = _number("LOCAL_RANK", 0, 0, size - 1)
        # Its functions bind the current process group as a default. If transformers, for example, imported it later,
        # they would keep gloo's threads alive until the interpreter exits, which then sometimes aborts.
        import torch.distributed.nn  # noqa: F401
        from torch.distributed.rendezvous import rendezvous

        own = cls(rank, size, local_rank)

        def join() -> None:
            store, _, _ = next(rendezvous("env://", rank, size, timeout=JOINING))
            store.set(f"rank {rank} is here", "")
            # torch 2.1's rendezvous stops waiting without an error.
            store.wait([f"rank {i} is here" for i in range(size)], JOINING)
            store.set_timeout(PATIENCE)
            store = dist.PrefixStore("run", store)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)

        own._collective(join)
        # Wait until every rank has joined. A rank that ended earlier, with an error that all ranks meet, would look to
        # the others like a dead process.
        own.wait()
        return own

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which prints and writes the tables."""
        return self.rank == 0

    def share(self, items: list[T]) -> list[T]:
        """Return this rank's share: every `size`-th item."""
        return items[self.rank :: self.size]

    def broadcast(self, value: T) -> T:
        """Return rank 0's value on every rank."""
        if self.size == 1:
            return value
        box = [value]
        self._collective(lambda: dist.broadcast_object_list(box, src=0))
        return box[0]

    def wait(self) -> None:
        if self.size > 1:
            self._collective(lambda: dist.all_gather_object([None] * self.size, None))

    def gather(self, folder: RunFolder) -> None:
        """Copy every process's results into the run's database."""
        folder.database.commit()
        if self.size > 1:
            self.wait()  # until every part is complete
            self.on_rank_zero(folder.absorb)
            if not self.first:
                folder.database.clear()

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and return its result on every rank. An error ends the other ranks silently."""
        if not self.first:
            result, code = self.broadcast((None, 0))
            if code:
                raise SystemExit(code)
            return result  # type: ignore[return-value]  # the value of rank 0
        try:
            result = work()
        except (InputError, RunError) as error:
            self.broadcast((None, 2 if isinstance(error, InputError) else 1))
            raise
        self.broadcast((result, 0))
        return result

    def device_name(self, requested: str) -> str:
        """Return this rank's device: each rank of a machine has its own CUDA device. Raises RunError."""
        if self.size == 1 or requested not in ("auto", "cuda"):
            return requested
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            return "cpu" if requested == "auto" and not self.first else requested
        if self.local_rank >= count:
            raise RunError(
                f"process {self.rank}: this machine has {count} CUDA devices, fewer than processes;"
                f" use --nproc_per_node={count}"
            )
        return f"cuda:{self.local_rank}"

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *raised: object) -> None:
        """Leave the process group."""
        if self.size > 1:
            dist.destroy_process_group()

    def _collective(self, work: Callable[[], object]) -> None:
        try:
            work()
        except RuntimeError as error:
            raise RunError(
                f"process {self.rank} of {self.size}: another process of this run has ended or does not answer;"
                " see its message above, then continue with --resume"
            ) from error


def _number(name: str, default: int, least: int, most: int) -> int:
    """Read a whole number from an environment variable. Raises InputError."""
    text = os.environ.get(name, "").strip() or str(default)
    if not re.fullmatch("-?[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise InputError(
            f"the environment has {name}={shortened(text)!r}; allowed: a whole number from {least} to {most:,}, as"
            " torchrun sets it; unset WORLD_SIZE to run alone"
        )
    return int(text)
