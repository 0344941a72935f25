"""Precision of the backward pass, which may be lower than that of the forward pass.

Only the matrix products of the backward pass use rounded factors, with results in float32. The forward pass and all
sums and norms are unchanged.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..base.allowed import BACKWARD_PRECISIONS
from ..base.errors import InputError, did_you_mean

AUTO, FP32, BF16, TF32 = BACKWARD_PRECISIONS
SIDE = 1024  # side of the matrices that "auto" multiplies to measure speed
PAYS = 1.3  # "auto" takes a precision that is at least so many times faster than float32
REPEATS = 3


def matrix_products_in(precision: str) -> AbstractContextManager[Any]:
    """Return a context for `torch.autograd.grad` with one of BACKWARD_PRECISIONS, except "auto"."""
    if precision == FP32:
        return nullcontext()
    return _RoundedFactors() if precision == BF16 else _tf32()


class _RoundedFactors(TorchDispatchMode):
    """Multiplies float32 matrices with factors rounded to bfloat16; results are float32."""

    PRODUCTS = frozenset({torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.addmm.default})

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        factors = [each for each in args if isinstance(each, Tensor)]
        if func not in self.PRODUCTS or any(each.dtype != torch.float32 for each in factors):
            return func(*args, **(kwargs or {}))
        rounded = [each.bfloat16() if isinstance(each, Tensor) else each for each in args]
        return func(*rounded, **(kwargs or {})).float()


@contextmanager
def _tf32() -> Iterator[None]:
    """Use PyTorch's precision "high": TensorFloat32 on CUDA."""
    matmul: Any = torch.backends.cuda.matmul
    with ExitStack() as undo:
        if hasattr(matmul, "fp32_precision"):  # from PyTorch 2.9 on; once used, the older setting cannot be read
            mkldnn: Any = torch.backends.mkldnn
            for backend in (matmul, mkldnn.matmul):
                undo.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
                backend.fp32_precision = "tf32"
        else:
            undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("high")
        yield


def check_backward_precision(precision: str) -> None:
    """Raise InputError unless `precision` is one of BACKWARD_PRECISIONS."""
    if precision not in BACKWARD_PRECISIONS:
        raise InputError(
            f"backward_precision {precision!r} is unknown; {did_you_mean(precision, BACKWARD_PRECISIONS)}"
            f"allowed: {', '.join(BACKWARD_PRECISIONS)}"
        )


def resolved_precision(precision: str, device: torch.device) -> str:
    """Return `precision`, or for "auto" the fastest one on `device`, measured once."""
    return faster_precision(device.type)[0] if precision == AUTO else precision


@functools.cache
def faster_precision(device: str) -> tuple[str, float]:
    """Return the precision for "auto" on a type of device, and its speed relative to float32."""
    a, b = (torch.randn(SIDE, SIDE, device=device, generator=torch.Generator(device).manual_seed(i)) for i in (0, 1))
    plain = _seconds(lambda: torch.mm(a, b), device)
    ways = [BF16, TF32] if device == "cuda" else [BF16]
    gains = {}
    for way in ways:
        with matrix_products_in(way):
            gains[way] = plain / _seconds(lambda: torch.mm(a, b), device)
    best = max(gains, key=lambda way: gains[way])
    return (best, gains[best]) if gains[best] >= PAYS else (FP32, 1.0)


def _seconds(work: Any, device: str) -> float:
    """Time the fastest of a few runs, after a warm-up run."""
    times = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
