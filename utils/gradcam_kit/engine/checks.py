"""What Python has to know of a pass, brought from its device while the device goes on.

Whoever reads a tensor waits for all that was given to the device before, and the device then waits for Python's next
call. So a pass leaves what is to be checked in `Checks`, which are read once, when other work has been handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class FromDevice:
    """Tensors on their way to the CPU; from a CUDA device into pinned memory, so that nothing waits for them."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        known = [tensor.detach() if tensor.requires_grad else tensor for tensor in tensors]
        self._copies = [tensor.to("cpu", non_blocking=tensor.is_cuda) for tensor in known]
        self._arrivals: list[torch.cuda.Event] = []
        for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
            arrival = torch.cuda.Event()
            arrival.record(torch.cuda.current_stream(device))
            self._arrivals.append(arrival)

    def read(self) -> list[Tensor]:
        """The tensors, in their order. Waits until they are there, not for what was given to the device since."""
        for arrival in self._arrivals:
            arrival.synchronize()
        return self._copies


class Checks:
    """Values on a device, each with what is to be done once it is known: raise, mostly."""

    def __init__(self) -> None:
        self._asked: list[tuple[Tensor, Callable[[Tensor], None]]] = []
        self._sent: FromDevice | None = None

    def add(self, values: Tensor, tell: Callable[[Tensor], None]) -> None:
        """`tell` gets a copy of `values` on the CPU, after those that were added before."""
        self._asked.append((values, tell))

    def send(self) -> None:
        """Let the values come. Nothing can be added any more."""
        self._sent = FromDevice([values for values, _ in self._asked])

    def read(self) -> None:
        """Wait for the values and tell them, in order. Raises what is raised there."""
        if self._sent is None:
            self.send()
        assert self._sent is not None, "sent"
        for copy, (_, tell) in zip(self._sent.read(), self._asked, strict=True):
            tell(copy)


@contextmanager
def read_at_once(checks: Checks | None) -> Iterator[Checks]:
    """`checks`, which their owner will read; or, without an owner, new ones that are read at the end."""
    asked = Checks() if checks is None else checks
    yield asked
    if checks is None:
        asked.read()
