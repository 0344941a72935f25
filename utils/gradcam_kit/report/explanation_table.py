"""What --evaluate_explanations measured, as a table for a paper: LaTeX (booktabs) or CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..base.errors import InputError, did_you_mean
from ..base.files import read_table, write_table, write_whole
from ..base.text import printable
from ..measure.comparison import ALL, lower_is_better

SOURCE = "explanations.csv"
SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


class Measured(NamedTuple):
    """A map's value of one metric, its interval as written (empty for none), and whether it beats every control."""

    mean: float
    low: str
    high: str
    better: bool


Rows = Mapping[str, Mapping[str, Measured]]  # map → metric → value


def write_explanation_table(run_dir: Path, output: Path, metrics: Sequence[str] | None, dataset: str | None) -> None:
    """Write the table of a dataset: a row per map, a column per metric. Raises InputError.

    `metrics` None: all that were measured. `dataset` is needed where there are several.
    """
    if output.suffix not in (".tex", ".csv") or not output.absolute().parent.is_dir():
        raise InputError(f"--output {str(output)!r}: give a file (.tex, .csv) in a folder that is there")
    rows = _rows(run_dir / SOURCE, dataset)
    there = list(dict.fromkeys(metric for of_map in rows.values() for metric in of_map))
    for metric in metrics or ():
        if metric not in there:
            raise InputError(
                f"--metrics: {metric!r} was not measured; {did_you_mean(metric, there)}there are {', '.join(there)}"
            )
    shown = list(metrics or there)
    if output.suffix == ".csv":
        table = [[name, *(_plain(of_map.get(metric)) for metric in shown)] for name, of_map in rows.items()]
        write_table(output, ["map", *shown], table)
    else:
        write_whole(output, latex(rows, shown).encode())
    print(printable(f"{output}: {len(rows)} maps, {len(shown)} metrics"))


def _rows(path: Path, dataset: str | None) -> Rows:
    if not path.is_file():
        raise InputError(f"{path}: is not there: run test_with_gradcam.py with --evaluate_explanations first")
    table = list(read_table(path, ("dataset", "forgery", "method", "layer", "site", "metric", "mean", "better")))
    names = list(dict.fromkeys(row["dataset"] for row in table))
    if dataset is None and len(names) > 1:
        raise InputError(f"{path} has several datasets: give --dataset with one of {', '.join(names)}")
    if dataset is not None and dataset not in names:
        raise InputError(f"--dataset is {dataset!r}; {did_you_mean(dataset, names)}there are {', '.join(names)}")
    found: dict[str, dict[str, Measured]] = {}
    for row in table:
        if row["forgery"] == ALL and row["dataset"] == (dataset or names[0]) and row["mean"]:
            parts = [
                row[key] for key in ("method", "layer", "site", "backward") if row.get(key) not in ("", "plain", None)
            ]
            value = Measured(float(row["mean"]), row["low"], row["high"], row["better"] == "True")
            found.setdefault(", ".join(map(str, parts)), {})[row["metric"]] = value
    return found


def latex(rows: Rows, metrics: Sequence[str]) -> str:
    """A `tabular` for the package booktabs: the best of each metric bold, a dagger where it beats every control."""
    lines = [
        "% needs \\usepackage{booktabs}; 95 % intervals over videos; dagger: better than every control map",
        "\\begin{tabular}{l" + "r" * len(metrics) + "}",
        "\\toprule",
        " & ".join(["map", *(escaped(metric) for metric in metrics)]) + r" \\",
        "\\midrule",
    ]
    best = {metric: _best(rows, metric) for metric in metrics}
    for name, of_map in rows.items():
        cells = [_cell(of_map.get(metric), name == best[metric]) for metric in metrics]
        lines.append(" & ".join([escaped(name), *cells]) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _best(rows: Rows, metric: str) -> str:
    """The map with the best mean."""
    values = {name: of_map[metric].mean for name, of_map in rows.items() if metric in of_map}
    pick = min if lower_is_better(metric) else max
    return pick(values, key=lambda name: values[name])


def _cell(value: Measured | None, best: bool) -> str:
    if value is None:
        return "--"
    mean = f"{value.mean:.3f}"
    interval = f" {{\\scriptsize [{float(value.low):.3f}, {float(value.high):.3f}]}}" if value.low else ""
    return (f"\\textbf{{{mean}}}" if best else mean) + ("$^\\dagger$" if value.better else "") + interval


def _plain(value: Measured | None) -> str:
    return "" if value is None else f"{value.mean:.6g}"


def escaped(text: str) -> str:
    """A name as LaTeX sets it."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)
