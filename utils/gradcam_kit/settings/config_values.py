"""Typed reading of a mapping that came from outside (YAML, flags, a config dict)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..base.errors import InputError, did_you_mean
from ..base.text import shortened

MAX_VALUES = 100_000
MAX_COUNT = 2**63 - 1


def refuse_odd_values(values: Any, where: str) -> None:
    """Refuse what no configuration holds and no manifest can say. Raises InputError, whose message begins with `where`.

    That is: NaN and infinity, numbers of more than 64 bits, keys such as dates, and aliases (`*name`) that lead back to
    themselves or stand for more than 100,000 values, which a file of ten lines can do.
    """
    waiting, seen = [values], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise InputError(f"{where}: stands for more than {MAX_VALUES:,} values; its aliases may lead in a circle")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, (str, int, float, type(None))):
                    raise InputError(
                        f"{where}: the key {shortened(repr(key))} is a {type(key).__name__}; allowed: strings"
                    )
            waiting += [*value, *value.values()]
        elif isinstance(value, (list, tuple, set)):
            waiting += value
        elif isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{where}: holds {value}; allowed: finite numbers")
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise InputError(f"{where}: holds a number of more than 64 bits; allowed: smaller ones")


class Section:
    """Typed reading of one mapping from outside; errors name the file, the key, what was found and what is allowed."""

    def __init__(self, values: Mapping[str, Any], where: str, flags: Mapping[str, str] | None = None) -> None:
        """`where`: the file. `flags`: key → the command's flag, for keys whose value was given by one."""
        self.values = values
        self.where = where
        self.flags = flags or {}

    def name(self, key: str) -> str:
        """Where the value of `key` was given: a flag, or the key in its file."""
        return self.flags.get(key) or f"{self.where}: {key}"

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(key) is not None

    def string(self, key: str, default: str | None = None) -> str:
        """A string. Without `default` the key must be there, here and in all that follow."""
        return str(self._typed(key, (str,), "a string", default))

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        return bool(self._typed(key, (bool,), "true or false", default))

    def count(self, key: str, default: int | None = None, least: int = 0, most: int = MAX_COUNT) -> int:
        """A whole number from `least` to `most`."""
        allowed = f"a whole number of at least {least}" + (f" and at most {most:,}" if most < MAX_COUNT else "")
        value = self._typed(key, (int,), allowed, default)
        if isinstance(value, bool) or not least <= value <= most:
            raise self.error(key, allowed if value < MAX_COUNT else f"{allowed}, of 64 bits")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number of at least 0."""
        value = self._typed(key, (int, float), "a number of at least 0", default)
        if isinstance(value, bool) or not 0 <= value < float("inf"):
            raise self.error(key, "a number of at least 0")
        return float(value)

    def choice(self, key: str, choices: Sequence[str], default: str | None = None) -> str:
        """One of `choices`."""
        value = self._typed(key, (str,), "one of " + ", ".join(choices), default)
        if value not in choices:
            raise self.error(key, ", ".join(choices), did_you_mean(value, choices))
        return str(value)

    def strings(self, key: str) -> list[str]:
        """A list of strings that is not empty; one string alone counts as a list of one."""
        value = self._typed(key, (list, tuple, str), "a list of strings", None)
        items = [value] if isinstance(value, str) else list(value)
        if not items or not all(isinstance(item, str) for item in items):
            raise self.error(key, "a list of strings that is not empty")
        return items

    def channels(self, key: str, default: Sequence[float]) -> tuple[float, ...]:
        """Three numbers, one per colour channel."""
        value = self._typed(key, (list, tuple), "three numbers", default)
        if len(value) != 3 or not all(isinstance(item, (int, float)) for item in value):
            raise self.error(key, "three numbers, one per colour channel")
        return tuple(float(item) for item in value)

    def mapping(self, key: str, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """A mapping."""
        return self._typed(key, (Mapping,), "a mapping", default)

    def error(self, key: str, allowed: str, close: str = "") -> InputError:
        """What to raise where the value of `key` is not what is `allowed`; `close` as `did_you_mean` gives it."""
        return InputError(f"{self.name(key)} is {shortened(repr(self.values.get(key)))}; {close}allowed: {allowed}")

    def _typed(self, key: str, types: tuple[type, ...], allowed: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            if default is None:
                close = did_you_mean(key, [str(name) for name in self.values])
                raise InputError(f"{self.where}: the key {key} is missing; {close}allowed: {allowed}")
            return default
        if not isinstance(value, types):
            raise self.error(key, allowed)
        return value
