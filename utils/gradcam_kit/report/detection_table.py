"""A table of detectors × forgeries for a paper, as LaTeX (booktabs) or CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..base.errors import InputError
from ..base.files import write_table, write_whole
from ..base.text import printable
from ..judge.forgeries import METRICS, Metrics, forgery_metrics, group_means, group_of
from ..store.read_run import RunOnDisk, frame_rows, read_run
from .paper import check_known, check_output, escaped

SHOWN = ("auc",)  # in a LaTeX table, if no metric is named
SMALLER_IS_BETTER = ("eer",)
COLUMNS = ("run", "dataset", "forgery", "group", *METRICS)
MEAN = "mean"


class DetectionRow(NamedTuple):
    """One forgery of one dataset in every run; None for a run without it."""

    dataset: str
    forgery: str
    of_runs: list[Metrics | None]


def write_detection_table(
    run_dirs: Sequence[Path], output: Path, metrics: Sequence[str] | None, dataset: str | None
) -> None:
    """Write forgeries × runs, with means over DF40's groups.

    CSV: a row per run and forgery, with every metric. LaTeX: a column per run, with one metric (default AUC) and its
    interval, the best of each row bold. Raises InputError for runs without fakes, or an unknown metric or dataset.
    """
    check_output(output, (".tex", ".csv"))
    check_known(metrics or [], METRICS, "--metrics: {} is not a metric of detection; {}allowed: {}")
    rows = _rows([read_run(folder, samples_at_most=1) for folder in run_dirs], dataset)
    names = _names(run_dirs)
    if output.suffix == ".csv":
        write_table(output, COLUMNS, _long(rows, names))
    else:
        chosen = list(metrics or SHOWN)
        if len(chosen) > 1:
            raise InputError(
                f"--metrics names {len(chosen)} metrics, but a LaTeX table holds one: name one, or give .csv"
            )
        write_whole(output, latex(rows, names, chosen[0]).encode())
    print(printable(f"{output}: {len(rows)} forgeries, {len(run_dirs)} runs"))


def _rows(runs: Sequence[RunOnDisk], dataset: str | None) -> list[DetectionRow]:
    found: dict[tuple[str, str], list[Metrics | None]] = {}
    for i, run in enumerate(runs):
        known = [data.name for data in run.datasets]
        check_known([dataset] if dataset else [], known, f"--dataset is {{}}; {{}}{run.folder} has {{}}")
        for data in run.datasets:
            if dataset in (None, data.name):
                table = list(frame_rows(data.folder))
                of_forgery = forgery_metrics(
                    [float(row["prob_fake"]) for row in table],
                    [int(row["label"]) for row in table],
                    [row["forgery"] for row in table],
                    [(row["forgery"], row["video"]) for row in table],
                )
                for name, metrics in of_forgery.items():
                    found.setdefault((data.name, name), [None] * len(runs))[i] = metrics
    if not found:
        raise InputError(f"{runs[0].folder}: no fake frame was evaluated, so there is nothing to report by forgery")
    return [DetectionRow(*key, of_runs) for key, of_runs in found.items()]


def _names(run_dirs: Sequence[Path]) -> list[str]:
    """Return the shortest distinct ends of the runs' folders, because a table for others has no absolute path."""
    parts = [folder.resolve().parts[1:] for folder in run_dirs]
    ends = (["/".join(one[-length:]) for one in parts] for length in range(1, max(map(len, parts)) + 1))
    return next((names for names in ends if len(set(names)) == len(names)), [str(i) for i in range(1, len(parts) + 1)])


def _long(rows: Sequence[DetectionRow], names: Sequence[str]) -> list[list[object]]:
    """Return the CSV rows: each run's forgeries, then the means over DF40's groups."""
    lines: list[list[object]] = []
    for i, run in enumerate(names):
        there = [(row, metrics) for row in rows if (metrics := row.of_runs[i]) is not None]
        for row, metrics in there:
            values = ("" if metrics[name] is None else metrics[name] for name in METRICS)
            lines.append([run, row.dataset, row.forgery, group_of(row.forgery), *map(_number, values)])
        for group, means in group_means((row.forgery, metrics) for row, metrics in there).items():
            lines.append([run, "", MEAN, group, *(_number(means.get(name, "")) for name in METRICS)])
    return lines


def _number(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def latex(rows: Sequence[DetectionRow], names: Sequence[str], metric: str) -> str:
    """Return a `tabular` for booktabs: a row per forgery, a column per run."""
    lines = [
        "% needs \\usepackage{booktabs}; 95 % intervals over videos",
        f"% {metric} of each forgery's fakes against all real frames of its dataset",
        "\\begin{tabular}{l" + "r" * len(names) + "}",
        "\\toprule",
        " & ".join(["forgery", *map(escaped, names)]) + r" \\",
        "\\midrule",
    ]
    several = len({row.dataset for row in rows}) > 1
    for row in rows:
        name = f"{row.dataset}: {row.forgery}" if several and row.dataset != row.forgery else row.forgery
        values = [None if of is None else of[metric] for of in row.of_runs]
        cells = [
            _cell(value, value == _best(values, metric), _interval(of, metric))
            for value, of in zip(values, row.of_runs, strict=True)
        ]
        lines.append(" & ".join([escaped(name), *cells]) + r" \\")
    means = [
        group_means((row.forgery, of) for row in rows if (of := row.of_runs[i]) is not None) for i in range(len(names))
    ]
    for i, group in enumerate(dict.fromkeys(group for of_run in means for group in of_run)):
        values = [of_run.get(group, {}).get(metric) for of_run in means]
        cells = [_cell(value, value == _best(values, metric), "") for value in values]
        lines += [*(["\\midrule"] if i == 0 else []), " & ".join([f"mean, {group}", *cells]) + r" \\"]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _best(values: Sequence[float | None], metric: str) -> float | None:
    there = [value for value in values if value is not None]
    if len(there) < 2:
        return None  # nothing to compare with
    return min(there) if metric in SMALLER_IS_BETTER else max(there)


def _interval(of: Metrics | None, metric: str) -> str:
    low, high = (None if of is None else of.get(f"{metric}_{end}") for end in ("low", "high"))
    return "" if low is None or high is None else f" {{\\scriptsize [{low:.3f}, {high:.3f}]}}"


def _cell(value: float | None, best: bool, interval: str) -> str:
    if value is None:
        return "--"
    number = str(value) if isinstance(value, int) else f"{value:.3f}"
    return (f"\\textbf{{{number}}}" if best else number) + interval
