"""Bring values that Python needs from the device, while the device continues to work.

Reading a tensor waits for all earlier work of the device, and the device then waits for Python's next call. Therefore a
pass collects the values to check in `Checks`, and the caller reads them once, after launching other work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


class Checks(list[tuple[Tensor, Callable[[Tensor], None]]]):
    """Values on a device, each with an action for when it is known, mostly an error to raise.

    The action gets a copy of the values on the CPU. Actions run in the order of the list.
    """

    _sent: FromDevice | None = None

    def send(self) -> None:
        """Start copying the values. Nothing can be appended after this."""
        self._sent = FromDevice([values for values, _ in self])

    def read(self) -> None:
        """Wait for the values and call each action. Raises their errors."""
        if self._sent is None:
            self.send()
        assert self._sent is not None, "sent"
        for copy, (_, tell) in zip(self._sent.read(), self, strict=True):
            tell(copy)
