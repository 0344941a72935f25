"""Conversion of parsed JSON or YAML into typed values, and back. Only this file imports msgspec.

A type is a dataclass, or lists, mappings and the like. A ValueError in `__post_init__` says what is allowed.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, inspect

from .errors import did_you_mean
from .text import shortened

T = TypeVar("T")

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Number = Annotated[float, Meta(ge=-1e300, le=1e300)]  # finite
Share = Annotated[float, Meta(ge=0, le=1)]
Filled = Annotated[str, Meta(min_length=1)]

VALUE, MISSING, UNKNOWN = "value", "missing", "unknown"


@dataclasses.dataclass(eq=False)
class Misfit(ValueError):
    """A value does not fit its type. `place`: the keys that lead to it, or to the key that is missing.

    `problem`: VALUE, MISSING or UNKNOWN (a key). `allowed`: the type in words. `close`: from `did_you_mean`.
    """

    problem: str
    place: tuple[str, ...]
    value: Any
    allowed: str
    close: str = ""

    def __str__(self) -> str:
        """Say what was found, and where."""
        *above, key = self.place or ("it",)
        found = {
            VALUE: f"{key} is {shortened(repr(self.value))}",
            MISSING: f"the field {key} is missing",
            UNKNOWN: f"the field {shortened(repr(key))} is unknown",
        }
        return ": ".join(filter(None, (".".join(above), found[self.problem])))

    def text(self, where: str, foreign: str = "") -> str:
        """Return one sentence: `where` (a file), the misfit, and what is allowed or `foreign`."""
        if foreign:
            return f"{where}: {self}{', ' if self.problem == VALUE else '; '}{foreign}"
        return f"{where}: {self}; {self.close}allowed: {self.allowed}"


def fit(values: Any, kind: type[T], closed: bool = False, text: bool = False) -> T:
    """Convert `values` to `kind`. A list may become a tuple and a whole number a float. Raises Misfit.

    With `closed`, an unknown key raises Misfit too. With `text`, numbers are strings, as in a CSV.
    """
    try:
        fitted = msgspec.convert(values, kind, strict=not text)
    except UnicodeEncodeError as error:  # msgspec compares keys as UTF-8
        raise Misfit(UNKNOWN, (str(error.object),), None, "keys in Unicode") from None
    except msgspec.ValidationError as error:
        raise _misfit(values, kind, str(error)) from None
    if closed:
        _refuse_unknown(values, fitted, ())
    return fitted


def builtins(value: Any) -> Any:
    """Convert dataclasses and named tuples to mappings for JSON; NaN and infinity, which JSON lacks, become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: builtins(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return {key: builtins(one) for key, one in value._asdict().items()}
    if isinstance(value, Mapping):
        return {key: builtins(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [builtins(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_nan(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `builtins` for numbers: None becomes NaN."""
    return {key: math.nan if value is None else value for key, value in numbers.items()}


# ------------------------------------------------------------------------------------------------ errors


def _misfit(values: Any, kind: Any, message: str) -> Misfit:
    """Turn msgspec's error `message` into a Misfit."""
    info = _one(inspect.type_info(kind))
    problem, _, path = message.partition(" - at ")
    place: tuple[str, ...] = ()
    for field, item in re.findall(r"\.(\w+)|\[([0-9]+|\.\.\.)\]", path.partition("`$")[2]):
        inner = _fields(info)[field].type if field else _item_type(info)
        key: Any = int(item) if item.isdigit() else field
        if item == "...":  # msgspec does not say which entry of a mapping it is
            if not isinstance(_one(inner), inspect.DataclassType):
                break  # show a mapping of plain values completely
            key = next(key for key, one in values.items() if not _fits(one, _one(inner).cls))
        values, info, place = values[key], _one(inner), (*place, str(key))
    missing = re.fullmatch(r"Object missing required field `(\w+)`", problem)
    if missing:
        allowed = _words(_fields(info)[missing[1]].type)
        return Misfit(MISSING, (*place, missing[1]), None, allowed, did_you_mean(missing[1], map(str, values)))
    choices = [str(one) for one in getattr(info, "values", ())]
    close = did_you_mean(values, choices) if isinstance(values, str) else ""
    ours = not problem.startswith(("Expected", "Invalid", "Number out"))  # raised by a `__post_init__`
    return Misfit(VALUE, place, values, problem if ours else _words(info), close)


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, UnicodeEncodeError):
        return False
    return True


def _refuse_unknown(values: Any, fitted: Any, place: tuple[str, ...]) -> None:
    """Raise Misfit for a key in `values` that is not a field of the dataclass `fitted`."""
    if dataclasses.is_dataclass(fitted) and isinstance(values, Mapping):
        names = [field.name for field in dataclasses.fields(fitted)]
        for key in values:
            if key not in names:
                close = did_you_mean(str(key), names)
                raise Misfit(UNKNOWN, (*place, str(key)), values[key], ", ".join(names), close)
        inner: Mapping[Any, Any] = {key: getattr(fitted, key) for key in values}
    elif isinstance(fitted, (list, tuple)):
        inner = dict(enumerate(fitted))
    else:
        inner = fitted if isinstance(fitted, Mapping) else {}
    for key, one in inner.items():
        _refuse_unknown(values[key], one, (*place, str(key)))


def _one(info: Any) -> Any:
    """Return the member of a union that has fields or items; any other type unchanged."""
    if isinstance(info, inspect.UnionType):
        info = next((one for one in info.types if hasattr(one, "fields") or _item_type(one)), info)
    return info


def _fields(info: Any) -> dict[str, Any]:
    return {field.encode_name: field for field in info.fields}


def _item_type(info: Any) -> Any:
    return getattr(info, "value_type", None) or getattr(info, "item_type", None)


def _words(info: Any) -> str:
    """Describe a type in words."""
    if isinstance(info, inspect.UnionType):
        return " or ".join(_words(one) for one in info.types)
    if isinstance(info, inspect.LiteralType):
        return ", ".join(map(str, info.values))
    if isinstance(info, (inspect.IntType, inspect.FloatType)):
        kind = "a whole number" if isinstance(info, inspect.IntType) else "a number"
        least = "" if info.ge is None or info.ge <= -1e300 else f"at least {info.ge:,}"
        most = "" if info.le is None or info.le >= 2**63 - 1 else f"at most {info.le:,}"
        return " of ".join(filter(None, (kind, " and ".join(filter(None, (least, most))))))
    if isinstance(info, inspect.StrType):
        return "a string that is not empty" if info.min_length else "a string"
    known: dict[type, str] = {
        inspect.BoolType: "true or false", inspect.NoneType: "null",
        inspect.DictType: "a mapping", inspect.DataclassType: "a mapping",
    }  # fmt: skip
    return known.get(type(info), "a list")
