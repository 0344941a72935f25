"""Values from outside become typed ones, or one sentence that says where they do not fit and what is allowed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pytest

from utils.gradcam_kit.base.typed import Count, Filled, Misfit, Number, Share, builtins, fit, with_nan


@dataclass(frozen=True, slots=True)
class Weights:
    path: str
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    batch: Count
    colormap: Literal["jet", "turbo"] = "jet"
    share: Share = 0.5
    number: Number = 0.0
    weights: Weights | Literal["random"] = "random"
    each: dict[str, Weights] = field(default_factory=dict)
    several: tuple[Weights, ...] = ()
    counts: dict[str, Count] = field(default_factory=dict)
    names: list[Filled] = field(default_factory=list)
    free: dict[str, Any] = field(default_factory=dict)
    maybe: Number | None = None
    later: dict[str, Weights] | None = None

    def __post_init__(self) -> None:
        if self.batch == 13:
            raise ValueError("another number than 13")


def test_what_fits() -> None:
    values = {"batch": 3, "weights": {"path": "a"}, "each": {"ö\udcff": {"path": "b", "sha256": "c"}}, "number": 2,
              "several": [{"path": "\udcff"}], "free": {"a": object}, "mood": "good"}  # fmt: skip
    run = fit(values, Run)
    assert run == Run(
        batch=3, weights=Weights("a"), each={"ö\udcff": Weights("b", "c")}, number=2.0, several=(Weights("\udcff"),),
        free={"a": object},
    )  # fmt: skip
    assert isinstance(run.number, float)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch": -1}, "f: batch is -1; allowed: a whole number of at least 0"),
        ({"batch": True}, "f: batch is True; allowed: a whole number of at least 0"),
        ({"batch": 2**63}, "f: batch is 9223372036854775808; allowed: a whole number of at least 0"),
        ({"batch": "3"}, "f: batch is '3'; allowed: a whole number of at least 0"),
        ({"batch": None}, "f: batch is None; allowed: a whole number of at least 0"),
        ({"share": 1.5}, "f: share is 1.5; allowed: a number of at least 0 and at most 1"),
        ({"number": math.nan}, "f: number is nan; allowed: a number"),
        ({"number": math.inf}, "f: number is inf; allowed: a number"),
        ({"maybe": "x"}, "f: maybe is 'x'; allowed: a number or null"),
        ({"colormap": "trubo"}, "f: colormap is 'trubo'; did you mean 'turbo'? allowed: jet, turbo"),
        ({"weights": "secret"}, "f: weights is 'secret'"),
        ({"weights": {}}, "f: weights: the field path is missing; allowed: a string"),
        ({"weights": {"path": 1}}, "f: weights: path is 1; allowed: a string"),
        ({"weights": {"path": "a", "sha": "b"}}, "f: weights: the field 'sha' is unknown; did you mean 'sha256'?"),
        ({"each": {"a": {"path": "a"}, "b": {"sha256": ""}}}, "f: each.b: the field path is missing"),
        ({"each": {"a": {"path": "a"}, "b": {"path": "a", "more": 1}}}, "f: each.b: the field 'more' is unknown"),
        ({"several": [{"path": "a"}, 7]}, "f: several: 1 is 7; allowed: a mapping"),
        ({"several": [{"path": "a", "\udcff": 1}]}, "f: the field '\\udcff' is unknown"),
        ({"counts": {"a": 1, "b": -1}}, "f: counts is {'a': 1, 'b': -1}; allowed: a mapping"),
        ({"names": ["a", 1]}, "f: names: 1 is 1; allowed: a string that is not empty"),
        ({"names": ["a", ""]}, "f: names: 1 is ''; allowed: a string that is not empty"),
        ({"later": {"b": {"sha256": ""}}}, "f: later.b: the field path is missing"),
        ({"free": {3: 4}}, "f: free is {3: 4}; allowed: a mapping"),
        ({"btach": 3}, "f: the field 'btach' is unknown; did you mean 'batch'?"),
        ({3: 4}, "f: it is {'batch': 1, 3: 4}; allowed: a mapping"),
    ],
)
def test_what_does_not_fit(changes: dict[Any, Any], says: str) -> None:
    with pytest.raises(Misfit) as refused:
        fit({"batch": 1, **changes}, Run, closed=True)
    assert refused.value.text("f").startswith(says)


def test_a_row_of_a_csv() -> None:
    row = {"batch": "3", "share": "0.25", "more": ""}
    assert fit(row, Run, text=True) == Run(batch=3, share=0.25)
    for wrong in ("", "x", "-1", "1.5", "9" * 5000):
        with pytest.raises(Misfit, match="batch is"):
            fit({**row, "batch": wrong}, Run, text=True)
    for wrong in ("nan", "inf", "1e999", "0q49", "2"):
        with pytest.raises(Misfit, match="share is"):
            fit({**row, "share": wrong}, Run, text=True)


@pytest.mark.parametrize("values", [None, 7, [], "x"])
def test_what_is_no_mapping(values: Any) -> None:
    with pytest.raises(Misfit) as refused:
        fit(values, Run)
    assert refused.value.text("f") == f"f: it is {values!r}; allowed: a mapping"


def test_a_reader_may_have_its_own_advice() -> None:
    with pytest.raises(Misfit, match="^batch is -1$") as refused:
        fit({"batch": -1}, Run)
    assert refused.value.text("f", "which no run writes; run again") == "f: batch is -1, which no run writes; run again"
    with pytest.raises(Misfit) as refused:
        fit({"btach": 1}, Run)
    assert refused.value.text("f", "run again") == "f: the field batch is missing; run again"
    assert refused.value.text("f").startswith("f: the field batch is missing; did you mean 'btach'? allowed: a whole")


def test_a_check_of_the_type_itself_says_what_is_allowed() -> None:
    with pytest.raises(Misfit) as refused:
        fit({"batch": 13}, Run)
    assert refused.value.text("f") == "f: it is {'batch': 13}; allowed: another number than 13"


class Pair(NamedTuple):
    low: float
    high: float


def test_the_way_back() -> None:
    values = {"a": Pair(1.0, math.nan), "b": (Weights("x"), -math.inf), "c": {"d": [True, None, "e", 3]}}
    assert builtins(values) == {
        "a": {"low": 1.0, "high": None}, "b": [{"path": "x", "sha256": ""}, None], "c": {"d": [True, None, "e", 3]},
    }  # fmt: skip
    assert Pair(**with_nan({"low": 1.0, "high": None})).low == 1.0
    assert math.isnan(Pair(**with_nan({"low": 1.0, "high": None})).high)
