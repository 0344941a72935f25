"""Batches that do not fit into memory are processed in halves, and so are all later ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from ..base.errors import RunError

T = TypeVar("T")


class SplitOnOutOfMemory:
    """Runs work over batches in parts that fit into memory, of at most `most` images.

    After a failure no part is larger than half of what failed, for the rest of the run, since a failed attempt costs
    time. Parts of another size may change the last bits of a result.
    """

    def __init__(self, what: str, most: int | None = None) -> None:
        self.what, self.most = what, most

    def run(self, work: Callable[[slice], T], size: int) -> list[T]:
        """The results of `work` over slices of `size` images, in order. Raises RunError where one image is too much."""
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
            # Out of the except block, where the error's traceback no longer holds the batch's tensors.
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
            f" (--batch_size {self.most} avoids the attempt)",
            file=sys.stderr,
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device. The CPU's allocator raises a plain RuntimeError."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("DefaultCPUAllocator", "not enough memory", "out of memory"))
    )
