"""The facts about one explained image, without pixels: a typed value and its JSON."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from ..base.decision import UNKNOWN, confidence, predicted_class
from ..base.text import is_plain_name
from ..base.typed import VALUE, Count, Meta, Misfit, Number, Share, builtins, fit
from ..data.frame import Frame
from ..data.frame_paths import hash_of, landmark_path
from ..drawing.clips import ClipImage
from ..drawing.overlays import Box, LayerImage, faint_layers, original_box
from ..explaining.explanation import Explanation
from ..judge.check import MapCheck
from ..judge.verdict import Choice, headline, judgements
from ..settings.config import DetectorSettings

RANDOM_WEIGHTS = "random"
RECIPE = ("method", "layer", "site", "backward")  # the keys of `Recipe.facts`
OF_A_RUN = ("folder", "comparison", "lost")  # fields of a Sample that are not in its JSON
SIGNED_TARGET = "margin, signed (red: fake, blue: real)"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts:
    """The facts about one layer's map, without pixels. Runs of earlier versions lack `artefact` and `check`."""

    name: str
    raw_minimum: Number
    raw_maximum: Number
    signed_extreme: Number  # largest magnitude of the signed map
    empty: bool  # no patch stands out in the raw map
    drawn_empty: bool  # the overlay shows only the image
    artefact: bool = False  # empty because its values are only rounding error and LayerNorm's ε
    check: MapCheck | None = None  # None: not checked
    time: tuple[Number, ...] = ()  # for a clip: each frame's share of the signed map
    recipe: dict[str, str] = field(default_factory=dict)  # `Recipe.facts`

    @property
    def kind(self) -> str:
        """Its `Recipe.kind`; "" if unknown."""
        return " ".join(of for name, of in self.recipe.items() if name != "layer")

    @classmethod
    def of(
        cls, layer: LayerImage, check: MapCheck | None = None, recipe: Mapping[str, str] | None = None
    ) -> LayerFacts:
        """Return the facts about a map that was just drawn."""
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
            recipe=dict(recipe or {}),
        )


@dataclass(frozen=True, slots=True)
class CompletenessFacts:
    """How far a layer's shares add up to this image's score; see `engine.completeness.Completeness`."""

    error: Number
    bias_share: Number


def evidence_for(target: str) -> str:
    """Say for which class maps of `target` show evidence, in words."""
    if target == SIGNED_TARGET:
        return "red: evidence for fake, blue: for real"
    explained = target.partition(" (")[2].rstrip(")") or target
    return {"margin": "evidence for fake over real", "both": "evidence for each class"}.get(
        explained, f"evidence for {explained}"
    )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One explained image without its pixels, as in `sample<i>.json`.

    For a sample of a run: `folder` is its folder; `comparison` the name of its comparison image there, "" if there is
    none; `lost` the reason why it cannot be shown, or "".
    """

    index: Count  # position in the dataset
    path: str
    dataset: str
    forgery: str
    video: str
    label: Annotated[int, Meta(ge=UNKNOWN, le=1)]  # 0 real, 1 fake, UNKNOWN
    prob_fake: Share
    logit_real: Number  # the scores for the two classes; for a head with two logits, the logits
    logit_fake: Number
    target: str
    method: str
    site: str
    backward: str = "plain"  # the default for runs of earlier versions
    weights: str
    layers: list[LayerFacts]
    chosen: tuple[str, ...] = ()  # how the map was chosen, and remarks on a named one
    original: Box | None  # the original's place in the comparison
    completeness: dict[str, CompletenessFacts] = field(default_factory=dict)  # by layer, if tested
    image_hash: str = ""  # content hash of the explained file (`data.frame_paths`), "" if unknown
    landmarks_hash: str = ""  # content hash of its landmark file, "" if there was none
    frames: tuple[Count, ...] = ()  # for a clip: the numbers of its frames; `path` is the first frame's
    cost: tuple[Number, ...] = ()  # for a checked clip: how far the score drops if a frame is replaced
    paired_real: str = ""  # path of the real frame it was made from and compared with; "": compared with the bank
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
        """Return the facts about `frame`, image i of the explained batch. `layers`: its drawings; `checks` by layer."""
        gradcam = settings.gradcam
        prediction, target = explanation.prediction, explanation.target[i]
        real, fake = explanation.real_and_fake[i].tolist()
        if gradcam.signed:
            target = SIGNED_TARGET
        elif target != gradcam.target:
            target = f"{gradcam.target} ({target})"
        weights = settings.weights_name or RANDOM_WEIGHTS
        recipes = {name: {**made.recipe.facts(), "layer": at} for name, (made, at) in explanation.entries.items()}
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
        """Return the entries of `sample<i>.json`. `predicted`, `correct` and `confidence` are derived."""
        values = builtins(self)
        for name in (*OF_A_RUN, *(name for name in ("frames", "cost", "paired_real") if not values[name])):
            del values[name]
        for layer in () if self.frames else values["layers"]:  # an image
            del layer["time"]
        derived = {name: getattr(self, name) for name in ("predicted", "correct", "confidence")}
        label = None if self.label == UNKNOWN else self.label
        identity = {name: values.pop(name) for name in ("index", "path", "dataset", "forgery", "video", "label")}
        return {**identity, "label": label, **derived, **values}

    @classmethod
    def from_json(cls, values: Any) -> Sample:
        """Read the result of `to_json`. Raises Misfit for anything else."""
        entries = fit(values, dict[str, Any])
        unknown = {"label": UNKNOWN} if entries.get("label", 0) is None else {}
        sample = fit({**entries, **unknown}, cls)
        for layer in sample.layers:
            if not is_plain_name(layer.name) or layer.raw_minimum > layer.raw_maximum:
                raise Misfit(VALUE, ("layers", layer.name), layer, "a plain name, and no minimum above the maximum")
            if layer.recipe and tuple(layer.recipe) != RECIPE:
                raise Misfit(VALUE, ("layers", layer.name, "recipe"), layer.recipe, ", ".join(RECIPE))
        return sample

    @functools.cached_property
    def predicted(self) -> int:
        """The predicted class: 0 real, 1 fake."""
        return predicted_class(self.prob_fake)

    @functools.cached_property
    def confidence(self) -> float:
        return confidence(self.prob_fake)

    @property
    def logits(self) -> tuple[float, float]:
        """The scores for real and for fake."""
        return self.logit_real, self.logit_fake

    @property
    def kinds(self) -> list[str]:
        """The kinds of map; several if the run draws several recipes."""
        return list(dict.fromkeys(layer.kind for layer in self.layers))

    @property
    def faint_layers(self) -> list[str]:
        """The layers that are negligible compared with another one."""
        return faint_layers([(layer.name, layer.kind, layer.raw_maximum) for layer in self.layers])

    @property
    def evidence(self) -> str:
        """The class for which the maps show evidence, in words."""
        return evidence_for(self.target)

    def overlay(self, layer: str) -> Path:
        """Return the path of a layer's overlay, for a sample read from disk."""
        return self.folder / f"gradcam_{layer}_sample{self.index}{Path(self.comparison).suffix}"

    @property
    def correct(self) -> bool | None:
        """Whether the prediction is right; None if the label is unknown."""
        return None if self.label == UNKNOWN else self.predicted == self.label

    @property
    def outcome(self) -> str:
        """TP, FP, TN or FN; positive means fake."""
        return ("T" if self.correct else "F") + ("P" if self.predicted else "N")

    def replaced_file(self) -> str:
        """Return the image or landmark file that has changed since the run; "" if both are the same, or gone."""
        for path, before in ((self.path, self.image_hash), (landmark_path(self.path), self.landmarks_hash)):
            now = hash_of(path) if self.image_hash else ""
            if now not in ("", before):
                return path
        return ""
