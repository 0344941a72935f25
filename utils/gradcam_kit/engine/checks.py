"""Bring values that Python needs from the device, while the device continues to work.

Reading a tensor waits for all earlier work of the device, and the device then waits for Python's next call. Therefore a
pass collects the values to check in `Checks`, and the caller reads them once, after launching other work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class FromDevice:
    """Tensors being copied to the CPU; from a CUDA device into pinned memory, so that nothing waits for them."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        known = [tensor.detach() if tensor.requires_grad else tensor for tensor in tensors]
        self._copies = [tensor.to("cpu", non_blocking=tensor.is_cuda) for tensor in known]
        self._arrivals: list[torch.cuda.Event] = []
        for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
            arrival = torch.cuda.Event()
            arrival.record(torch.cuda.current_stream(device))
            self._arrivals.append(arrival)

    def read(self) -> list[Tensor]:
        """Return the tensors in order. It waits only for them, not for later work of the device."""
        for arrival in self._arrivals:
            arrival.synchronize()
        return self._copies


class Checks:
    """Values on a device, each with an action for when it is known, mostly an error to raise."""

    def __init__(self) -> None:
        self._asked: list[tuple[Tensor, Callable[[Tensor], None]]] = []
        self._sent: FromDevice | None = None

    def add(self, values: Tensor, tell: Callable[[Tensor], None]) -> None:
        """Add `values`; `tell` will get a copy on the CPU, in the order of adding."""
        self._asked.append((values, tell))

    def send(self) -> None:
        """Start copying the values. Nothing can be added after this."""
        self._sent = FromDevice([values for values, _ in self._asked])

    def read(self) -> None:
        """Wait for the values and call each `tell`, in order. Raises their errors."""
        if self._sent is None:
            self.send()
        assert self._sent is not None, "sent"
        for copy, (_, tell) in zip(self._sent.read(), self._asked, strict=True):
            tell(copy)


@contextmanager
def read_at_once(checks: Checks | None) -> Iterator[Checks]:
    """Yield `checks`, which their owner reads later; if None, yield new ones and read them at the end."""
    asked = Checks() if checks is None else checks
    yield asked
    if checks is None:
        asked.read()
