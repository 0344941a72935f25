"""What all fuzz tests share: how many cases, how inputs are spoilt, what may come out, how long it may take."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("FUZZ_CASES", "400"))  # of each kind of input: datasets, configurations, checkpoints, images

SECONDS = 20  # for one case on a busy machine; undisturbed it takes milliseconds


def fuzzed(cases: int) -> Callable[..., Any]:
    return settings(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class Outcome:
    """Counts what came out, so that a fuzz that only ever fails (or never does) is seen to be blind."""

    def __init__(self) -> None:
        self.fine = self.refused = 0

    def of(self, call: Callable[[], object], *documented: type[Exception]) -> Any:
        try:
            with at_most(SECONDS):
                value = call()
        except documented as error:
            self.refused += 1
            message = " ".join(str(error).split())
            assert message and len(message) < 5_000
            return None
        self.fine += 1
        return value


def mutate(seed: int, *sources: bytes) -> bytes:
    """One of `sources` with a few bytes changed and, in every second case, a part cut out, doubled, or its end lost."""
    rng = np.random.default_rng(seed)
    data = bytearray(sources[rng.integers(len(sources))])
    for _ in range(rng.integers(6)):
        data[rng.integers(len(data))] = rng.integers(256)
    first, last = sorted(rng.integers(len(data), size=2))
    cut = [data, data, data, data[:first] + data[last:], data[:last] + data[first:last] + data[last:], data[:last]]
    return bytes(cut[rng.integers(len(cut))])


def mutated(*sources: bytes) -> st.SearchStrategy[bytes]:
    """One number from hypothesis and the rest from NumPy: ten times as many cases a second."""
    return st.integers(0, 2**32 - 1).map(lambda seed: mutate(seed, *sources))


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fails where the block takes longer, also inside a library that never comes back to Python by itself for long."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
