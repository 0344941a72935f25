"""Tables for a paper, as LaTeX (booktabs) or CSV: maps x metrics, and detectors x forgeries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..base.errors import InputError, did_you_mean
from ..base.files import read_table, write_table, write_whole
from ..base.text import printable
from ..judge.forgeries import METRICS, Metrics, forgery_metrics, group_means, group_of
from ..measure.comparison import ALL, lower_is_better
from ..store.read_run import RunOnDisk, frame_rows, read_run

SOURCE = "explanations.csv"
SHOWN = ("auc",)  # in a LaTeX table of detection, if no metric is named
SMALLER_IS_BETTER = ("eer",)
DETECTION_COLUMNS = ("run", "dataset", "forgery", "group", *METRICS)
MEAN = "mean"
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
    note, best = "% needs \\usepackage{booktabs}; 95 % intervals over videos; dagger: better than every control map", {}
    for metric in metrics:
        means = {name: of_map[metric].mean for name, of_map in rows.items() if metric in of_map}
        best[metric] = (min if lower_is_better(metric) else max)(means, key=means.__getitem__)
    lines = [
        [escaped(name), *(_cell(of_map.get(metric), name == best[metric]) for metric in metrics)]
        for name, of_map in rows.items()
    ]
    return tabular([note], ["map", *metrics], lines)


def tabular(notes: Sequence[str], names: Sequence[str], *parts: Sequence[Sequence[str]]) -> str:
    """Return a `tabular` for booktabs under comments: the columns' names, and parts of rows between lines."""
    head = [*notes, "\\begin{tabular}{l" + "r" * (len(names) - 1) + "}", "\\toprule"]
    lines: list[str] = []
    for part in filter(None, ([[escaped(name) for name in names]], *parts)):
        lines += [*map(_line, part), "\\midrule"]
    return "\n".join([*head, *lines[:-1], "\\bottomrule", "\\end{tabular}", ""])


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(value: Measured | None, best: bool) -> str:
    if value is None:
        return "--"
    mean = f"\\textbf{{{value.mean:.3f}}}" if best else f"{value.mean:.3f}"
    interval = f" {{\\scriptsize [{float(value.low):.3f}, {float(value.high):.3f}]}}" if value.low else ""
    return mean + ("$^\\dagger$" if value.better else "") + interval


def escaped(text: str) -> str:
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
    rows = _detection_rows([read_run(folder, samples_at_most=1) for folder in run_dirs], dataset)
    names = _names(run_dirs)
    if output.suffix == ".csv":
        write_table(output, DETECTION_COLUMNS, _long(rows, names))
    else:
        chosen = list(metrics or SHOWN)
        if len(chosen) > 1:
            raise InputError(
                f"--metrics names {len(chosen)} metrics, but a LaTeX table holds one: name one, or give .csv"
            )
        write_whole(output, detection_latex(rows, names, chosen[0]).encode())
    print(printable(f"{output}: {len(rows)} forgeries, {len(run_dirs)} runs"))


def _detection_rows(runs: Sequence[RunOnDisk], dataset: str | None) -> list[DetectionRow]:
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


def detection_latex(rows: Sequence[DetectionRow], names: Sequence[str], metric: str) -> str:
    """Return a `tabular` for booktabs: a row per forgery, a column per run."""
    notes = [
        "% needs \\usepackage{booktabs}; 95 % intervals over videos",
        f"% {metric} of each forgery's fakes against all real frames of its dataset",
    ]
    lines, of_groups = [], []
    several = len({row.dataset for row in rows}) > 1
    for row in rows:
        name = f"{row.dataset}: {row.forgery}" if several and row.dataset != row.forgery else row.forgery
        values = [None if of is None else of[metric] for of in row.of_runs]
        cells = [
            _score_cell(value, value == _best(values, metric), _score_interval(of, metric))
            for value, of in zip(values, row.of_runs, strict=True)
        ]
        lines.append([escaped(name), *cells])
    means = [
        group_means((row.forgery, of) for row in rows if (of := row.of_runs[i]) is not None) for i in range(len(names))
    ]
    for group in dict.fromkeys(group for of_run in means for group in of_run):
        values = [of_run.get(group, {}).get(metric) for of_run in means]
        cells = [_score_cell(value, value == _best(values, metric), "") for value in values]
        of_groups.append([f"mean, {group}", *cells])
    return tabular(notes, ["forgery", *names], lines, of_groups)


def _best(values: Sequence[float | None], metric: str) -> float | None:
    there = [value for value in values if value is not None]
    if len(there) < 2:
        return None  # nothing to compare with
    return min(there) if metric in SMALLER_IS_BETTER else max(there)


def _score_interval(of: Metrics | None, metric: str) -> str:
    low, high = (None if of is None else of.get(f"{metric}_{end}") for end in ("low", "high"))
    return "" if low is None or high is None else f" {{\\scriptsize [{low:.3f}, {high:.3f}]}}"


def _score_cell(value: float | None, best: bool, interval: str) -> str:
    if value is None:
        return "--"
    number = str(value) if isinstance(value, int) else f"{value:.3f}"
    return (f"\\textbf{{{number}}}" if best else number) + interval
