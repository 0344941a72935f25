"""Checked reading of a config (YAML, flags, a dict) by the table of options; other keys are not looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_origin

from ..base.errors import InputError, did_you_mean
from ..base.text import shortened
from ..base.typed import Meta, Misfit, fit
from .options import LARGEST, OPTIONS, Option

MAX_VALUES = 100_000
_MISSING = object()


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
    """A config, read key by key; errors name the file or the flag, the key, what was found and what is allowed."""

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

    def __getitem__(self, key: str) -> Any:
        return self.get(key, _MISSING if OPTIONS[key].required else OPTIONS[key].default)

    def get(self, key: str, default: Any, choices: Sequence[str] = ()) -> Any:
        """The value of an option of the table, or `default` where there is none. `choices`: instead of the table's."""
        option, value = OPTIONS[key], self.values.get(key)
        if value is None and default is not _MISSING:
            return default
        choices = choices or option.choices
        if get_origin(option.type) is list and not isinstance(value, (list, tuple, type(None))):
            value = [value]  # one alone
        try:
            fitted = fit(value, _type(option))
        except Misfit as misfit:
            allowed = ", ".join(choices) or option.words or misfit.allowed
            if value is None:
                close = did_you_mean(key, map(str, self.values))
                raise InputError(f"{self.where}: the key {key} is missing; {close}allowed: {allowed}") from None
            large = isinstance(value, int) and value > LARGEST
            raise self.error(key, f"{allowed}, of 64 bits" if large else allowed) from None
        if choices and fitted not in choices:
            raise self.error(key, ", ".join(choices), did_you_mean(fitted, choices))
        return fitted

    def error(self, key: str, allowed: str, close: str = "") -> InputError:
        """What to raise where the value of `key` is not what is `allowed`; `close` as `did_you_mean` gives it."""
        return InputError(f"{self.name(key)} is {shortened(repr(self.values.get(key)))}; {close}allowed: {allowed}")


def _type(option: Option) -> Any:
    """As msgspec understands it."""
    if option.type in (int, float):
        return Annotated[option.type, Meta(ge=option.least, le=option.most)]
    return Annotated[option.type, Meta(min_length=1)] if get_origin(option.type) is list else option.type
