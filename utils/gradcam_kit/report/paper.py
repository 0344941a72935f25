"""A table of measurements for a paper, as LaTeX (booktabs) or CSV."""

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


def check_output(output: Path, suffixes: Sequence[str]) -> None:
    """Raise InputError unless the suffix is allowed and the folder exists."""
    if output.suffix not in suffixes or not output.absolute().parent.is_dir():
        raise InputError(f"--output {str(output)!r}: give a file ({', '.join(suffixes)}) in an existing folder")


def check_known(asked: Sequence[str] | None, known: Sequence[str], message: str) -> None:
    """Raise InputError for a name that is not in `known`; `message` has slots for it, a guess and all names."""
    for name in asked or ():
        if name not in known:
            raise InputError(message.format(repr(name), did_you_mean(name, known), ", ".join(known)))


def dataset_name(asked: str | None, names: Sequence[str], where: str, have: str) -> str:
    """Return `asked`, or the only one of `names`. Raises InputError."""
    if asked is not None:
        check_known([asked], names, "--dataset is {}; {}" + have + " {}")
        return asked
    if len(names) > 1:
        raise InputError(f"{where} has several datasets: give --dataset with one of {', '.join(names)}")
    return names[0] if names else ""


class Measured(NamedTuple):
    """A map's value of one metric, its interval as text (or ""), and whether it beats every control."""

    mean: float
    low: str
    high: str
    better: bool


Rows = Mapping[str, Mapping[str, Measured]]  # map → metric → value


def write_explanation_table(run_dir: Path, output: Path, metrics: Sequence[str] | None, dataset: str | None) -> None:
    """Write a row per map and a column per metric (None: all). `dataset` is needed if there are several."""
    check_output(output, (".tex", ".csv"))
    rows = _rows(run_dir / SOURCE, dataset)
    there = list(dict.fromkeys(metric for of_map in rows.values() for metric in of_map))
    check_known(metrics, there, "--metrics: {} was not measured; {}available: {}")
    shown = list(metrics or there)
    if output.suffix == ".csv":
        table = [
            [name, *(f"{of_map[metric].mean:.6g}" if metric in of_map else "" for metric in shown)]
            for name, of_map in rows.items()
        ]
        write_table(output, ["map", *shown], table)
    else:
        write_whole(output, latex(rows, shown).encode())
    print(printable(f"{output}: {len(rows)} maps, {len(shown)} metrics"))


def _rows(path: Path, dataset: str | None) -> Rows:
    if not path.is_file():
        raise InputError(f"{path}: does not exist: first run test_with_gradcam.py with --evaluate_explanations")
    table = list(read_table(path, ("dataset", "forgery", "method", "layer", "site", "metric", "mean", "better")))
    dataset = dataset_name(dataset, list(dict.fromkeys(row["dataset"] for row in table)), f"{path}", "there are")
    found: dict[str, dict[str, Measured]] = {}
    for row in table:
        if row["forgery"] == ALL and row["dataset"] == dataset and row["mean"]:
            parts = (row.get(key) for key in ("method", "layer", "site", "backward"))
            value = Measured(float(row["mean"]), row["low"], row["high"], row["better"] == "yes")
            found.setdefault(", ".join(part for part in parts if part and part != "plain"), {})[row["metric"]] = value
    return found


def latex(rows: Rows, metrics: Sequence[str]) -> str:
    """Return a `tabular` for booktabs: the best of each metric bold, a dagger if it beats every control."""
    lines = [
        "% needs \\usepackage{booktabs}; 95 % intervals over videos; dagger: better than every control map",
        "\\begin{tabular}{l" + "r" * len(metrics) + "}",
        "\\toprule",
        " & ".join(["map", *(escaped(metric) for metric in metrics)]) + r" \\",
        "\\midrule",
    ]
    best = {}
    for metric in metrics:
        means = {name: of_map[metric].mean for name, of_map in rows.items() if metric in of_map}
        best[metric] = (min if lower_is_better(metric) else max)(means, key=means.__getitem__)
    for name, of_map in rows.items():
        cells = [_cell(of_map.get(metric), name == best[metric]) for metric in metrics]
        lines.append(" & ".join([escaped(name), *cells]) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _cell(value: Measured | None, best: bool) -> str:
    if value is None:
        return "--"
    mean = f"\\textbf{{{value.mean:.3f}}}" if best else f"{value.mean:.3f}"
    interval = f" {{\\scriptsize [{float(value.low):.3f}, {float(value.high):.3f}]}}" if value.low else ""
    return mean + ("$^\\dagger$" if value.better else "") + interval


def escaped(text: str) -> str:
    """Escape a name for LaTeX."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def chosen_samples(words: Sequence[str], dataset: str | None) -> list[int]:
    """Numbers of samples, given as such or as @FILE, a CSV with the columns `index` and `dataset`, of one dataset.

    Raises InputError.
    """
    found = []
    for word in words:
        if not word.startswith("@"):
            try:
                found.append(int(word))
            except ValueError:
                raise InputError(
                    f"--samples {word!r}: is no number; give the i of sample<i>/, or @FILE with a CSV of chosen samples"
                ) from None
            continue
        try:
            rows = [
                row for row in read_table(Path(word[1:]), ("index", "dataset")) if dataset in (None, row["dataset"])
            ]
            found += [int(row["index"]) for row in rows]
        except (OSError, ValueError) as error:
            raise InputError(
                f"--samples {word}: cannot be read as the page's CSV of chosen samples: {error}"
            ) from error
        if len({row["dataset"] for row in rows}) > 1:
            raise InputError(f"--samples {word}: has samples of several datasets: name one with --dataset")
    if not found:
        raise InputError("--samples: no sample is named there")
    return found
