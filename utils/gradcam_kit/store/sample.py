"""What is known of one explained image beside its pixels: a typed value, its JSON and what follows from it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from ..base.decision import UNKNOWN, confidence, predicted
from ..base.text import is_plain_name
from ..base.typed import Count, Meta, Number, Share, builtins, fit
from ..data.frame import Frame
from ..data.frame_paths import hash_of, landmark_path
from ..drawing.clips import ClipImage
from ..drawing.overlays import Box, LayerImage, faint_layers, original_box
from ..engine.recipe import Recipe
from ..explaining.explanation import Explanation
from ..judge.check import MapCheck
from ..judge.verdict import Choice, headline, judgements
from ..settings.config import DetectorSettings

RANDOM_WEIGHTS = "random"
# Of `sample<i>.json`, in its order.
ENTRIES = (
    "index", "path", "dataset", "forgery", "video", "label", "predicted", "correct", "confidence", "prob_fake",
    "logit_real", "logit_fake", "target", "method", "site", "backward", "weights", "layers", "chosen", "original",
    "completeness", "image_hash", "landmarks_hash", "frames",
    "paired_real",
)  # fmt: skip
SIGNED_TARGET = "margin, signed (red: fake, blue: real)"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts:
    """What is known of one layer's map beside its pixels; runs of earlier versions have no `artefact` and `check`."""

    name: str
    raw_minimum: Number
    raw_maximum: Number
    signed_extreme: Number  # largest magnitude of the signed map
    empty: bool  # no patch stands out in the raw map: there is nothing to weigh
    drawn_empty: bool  # the overlay is the plain image: there is nothing to show
    artefact: bool = False  # empty because all of it is what rounding and LayerNorm's ε leave of sums that are zero
    check: MapCheck | None = None  # None: not checked
    time: tuple[Number, ...] = ()  # of a clip: what each frame adds to the signed map
    recipe: dict[str, str] = field(default_factory=dict)  # how it was made: `Recipe.facts`

    def __post_init__(self) -> None:
        if not is_plain_name(self.name) or self.raw_minimum > self.raw_maximum:
            raise ValueError("a plain name, and a minimum that is not above the maximum")

    @property
    def kind(self) -> str:
        """Its `Recipe.kind`; "" where that is not known."""
        return Recipe.of(self.recipe).kind if self.recipe else ""

    @classmethod
    def of(cls, layer: LayerImage, check: MapCheck | None = None, recipe: Recipe | None = None) -> LayerFacts:
        """Of a map that was just drawn."""
        return cls(
            name=layer.name,
            raw_minimum=float(layer.raw.min()),
            raw_maximum=float(layer.raw.max()),
            signed_extreme=float(np.abs(layer.signed).max()),
            empty=layer.empty,
            drawn_empty=layer.drawn_empty,
            artefact=layer.artefact,
            check=check,
            time=tuple(layer.time.tolist()) if isinstance(layer, ClipImage) else (),
            recipe=recipe.facts() if recipe else {},
        )


@dataclass(frozen=True, slots=True)
class CompletenessFacts:
    """Whether a layer's shares add up to this image's score, see `engine.completeness.Completeness`."""

    error: Number
    bias_share: Number


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One explained image, but for its pixels: written as `sample<i>.json`, read back as the same values.

    `folder`, `comparison` and `lost` are of a sample of a run: its folder, the name of its comparison image there
    (empty where the run keeps no images, or it was deleted), and why it cannot be shown, in words.
    """

    index: Count  # position in the dataset
    path: str
    dataset: str
    forgery: str
    video: str
    label: Annotated[int, Meta(ge=UNKNOWN, le=1)]  # 0 real, 1 fake, UNKNOWN
    prob_fake: Share
    logit_real: Number  # the scores that the head makes of its logits, with two the logits
    logit_fake: Number
    target: str
    method: str
    site: str
    backward: str = "plain"  # as runs of earlier versions had it
    weights: str
    layers: list[LayerFacts]
    chosen: tuple[str, ...] = ()  # how the map was chosen, and what is to be said of a named one
    original: Box | None  # where the comparison shows the original
    completeness: dict[str, CompletenessFacts] = field(default_factory=dict)  # by layer, where it was tested
    image_hash: str = ""  # of the file that was explained (`data.frame_paths`), empty where it is not known
    landmarks_hash: str = ""  # of its landmark file, empty where there was none
    frames: tuple[Count, ...] = ()  # of a clip: the numbers of its frames; `path` is that of the first
    paired_real: str = ""  # the real frame that it was made from and compared with; empty: compared with the bank
    folder: Path = Path()
    comparison: str = ""
    lost: str = ""

    @classmethod
    def of(
        cls,
        frame: Frame,
        explanation: Explanation,
        i: int,
        layers: Sequence[LayerImage],
        settings: DetectorSettings,
        choice: Choice | None = None,
        checks: Mapping[str, MapCheck] | None = None,
        image_hash: str = "",
    ) -> Sample:
        """`frame`, image i of the explained batch; `layers` is what was drawn of it, `checks` of each layer's map."""
        gradcam = settings.gradcam
        prediction, target = explanation.prediction, explanation.target[i]
        real, fake = explanation.real_and_fake[i].tolist()
        if gradcam.signed:
            target = SIGNED_TARGET
        elif target != gradcam.target:
            target = f"{gradcam.target} ({target})"
        weights = settings.weights_name or RANDOM_WEIGHTS
        recipes = {name: made.recipe.at(layer) for name, (made, layer) in explanation.entries.items()}
        return cls(
            **frame._asdict(),
            prob_fake=float(prediction["prob"][i]),
            logit_real=real,
            logit_fake=fake,
            target=target,
            method=explanation.method,
            site=explanation.site,
            backward=explanation.backward,
            weights=weights,
            layers=[LayerFacts.of(layer, (checks or {}).get(layer.name), recipes.get(layer.name)) for layer in layers],
            original=original_box(layers[0].overlay.shape[:2], 1 + len(layers), weights == RANDOM_WEIGHTS),
            chosen=(headline(choice), *judgements(choice)) if choice else (),
            completeness={
                name: CompletenessFacts(float(tested.error[i]), float(tested.bias_share[i]))
                for name, tested in explanation.completeness.items()
            },
            image_hash=image_hash,
            landmarks_hash=hash_of(landmark_path(frame.path)) if image_hash else "",
        )

    def to_json(self) -> dict[str, Any]:
        """The entries of `sample<i>.json`; `predicted`, `correct` and `confidence` follow from the others."""
        values = {
            **builtins(self),
            "label": None if self.label == UNKNOWN else self.label,
            "predicted": self.predicted,
            "correct": self.correct,
            "confidence": self.confidence,
        }
        if not self.frames:  # an image
            del values["frames"]
        if not self.paired_real:
            del values["paired_real"]
        if not self.frames:
            values["layers"] = [{k: v for k, v in layer.items() if k != "time"} for layer in values["layers"]]
        return {name: values[name] for name in ENTRIES if name in values}

    @classmethod
    def from_json(cls, values: Any) -> Sample:
        """The sample that `to_json` gave. Raises Misfit for anything else."""
        entries = fit(values, dict[str, Any])
        unknown = {"label": UNKNOWN} if entries.get("label", 0) is None else {}
        return fit({**entries, **unknown}, cls)

    @functools.cached_property
    def predicted(self) -> int:
        """0 real, 1 fake."""
        return predicted(self.prob_fake)

    @functools.cached_property
    def confidence(self) -> float:
        """Probability of the predicted class."""
        return confidence(self.prob_fake)

    @property
    def logits(self) -> tuple[float, float]:
        """Of real and of fake."""
        return self.logit_real, self.logit_fake

    @property
    def kinds(self) -> list[str]:
        """The kinds of map: more than one where a run draws several recipes."""
        return list(dict.fromkeys(layer.kind for layer in self.layers))

    @property
    def faint_layers(self) -> list[str]:
        """The layers that count for next to nothing beside another one."""
        return faint_layers([(layer.name, layer.kind, layer.raw_maximum) for layer in self.layers])

    @property
    def evidence(self) -> str:
        """For which class the maps show evidence, in words: `target` names how that was asked for, too."""
        if self.target == SIGNED_TARGET:
            return "evidence for fake red, for real blue"
        explained = self.target.partition(" (")[2].rstrip(")") or self.target
        return {"margin": "evidence for fake over real", "both": "evidence for each class"}.get(
            explained, f"evidence for {explained}"
        )

    def overlay(self, layer: str) -> Path:
        """The file of a layer's overlay, of a sample read from disk."""
        return self.folder / f"gradcam_{layer}_sample{self.index}{Path(self.comparison).suffix}"

    @property
    def correct(self) -> bool | None:
        """None where the label is unknown."""
        return None if self.label == UNKNOWN else self.predicted == self.label

    @property
    def outcome(self) -> str:
        """TP, FP, TN or FN, where positive means fake."""
        return ("T" if self.correct else "F") + ("P" if self.predicted else "N")

    def replaced_file(self) -> str:
        """The image or landmark file that is another one than the run had; empty where both are the same, or gone."""
        for path, before in ((self.path, self.image_hash), (landmark_path(self.path), self.landmarks_hash)):
            now = hash_of(path) if self.image_hash else ""
            if now not in ("", before):
                return path
        return ""
