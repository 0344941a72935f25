"""What is known of one explained image beside its pixels: a typed value, its JSON and what follows from it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..base.decision import UNKNOWN, confidence, predicted
from ..data.frame import Frame
from ..data.frame_paths import landmark_path
from ..data.stamps import hash_of
from ..drawing.overlays import Box, LayerImage, faint_layers, original_box
from ..explain.explanation import Explanation
from ..judge.check import MapCheck
from ..judge.verdict import Choice, headline, judgements
from ..settings.config import DetectorSettings
from .grey_maps import GREY_MAPS, grey_name, read_grey_map
from .typed_values import count, flag, number, plain_name, string

RANDOM_WEIGHTS = "random"
SIGNED_TARGET = "margin, signed (red: fake, blue: real)"


class LayerFacts(NamedTuple):
    """What is known of one layer's map beside its pixels."""

    name: str
    raw_minimum: float
    raw_maximum: float
    signed_extreme: float  # largest magnitude of the signed map
    empty: bool  # no patch stands out in the raw map: there is nothing to weigh
    drawn_empty: bool  # the overlay is the plain image: there is nothing to show
    artefact: bool = False  # empty because all of it is what rounding and LayerNorm's ε leave of sums that are zero
    check: MapCheck | None = None  # None: not checked

    @classmethod
    def of(cls, layer: LayerImage) -> LayerFacts:
        """Of a map that was just drawn."""
        raw, extreme = layer.raw, float(np.abs(layer.signed).max())
        return cls(
            layer.name, float(raw.min()), float(raw.max()), extreme, layer.empty, layer.drawn_empty, layer.artefact
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LayerFacts:
        """The facts that `to_json` gave; runs of earlier versions have no `artefact` and no `check`."""
        values = {"artefact": False, "check": None, **values}
        low, high, extreme = (number(values, key) for key in ("raw_minimum", "raw_maximum", "signed_extreme"))
        if low > high:
            raise ValueError("raw_minimum is above raw_maximum")
        empty, drawn_empty, artefact = (flag(values, key) for key in ("empty", "drawn_empty", "artefact"))
        check = None if values["check"] is None else MapCheck.from_json(values["check"])
        return cls(plain_name(values, "name"), low, high, extreme, empty, drawn_empty, artefact, check)

    def to_json(self) -> dict[str, Any]:
        return {**self._asdict(), "check": self.check._asdict() if self.check else None}


class CompletenessFacts(NamedTuple):
    """Whether a layer's shares add up to this image's score, see `engine.completeness.Completeness`."""

    error: float
    bias_share: float


@dataclass(frozen=True)
class Sample:
    """One explained image, but for its pixels: written as `sample<i>.json`, read back as the same values.

    `folder`, `comparison` and `lost` are of a sample read from disk: where it lies, the name of its comparison image,
    and what is gone of it, in words. Where files are lost, `layers` is empty; where the JSON is, `target`, `method`,
    `site`, `backward` and `weights` are too, and `original` is None.
    """

    index: int  # position in the dataset
    path: str
    dataset: str
    forgery: str
    video: str
    label: int  # 0 real, 1 fake, UNKNOWN
    logits: tuple[float, float]  # real, fake: the scores that the head makes of its logits, with two the logits
    prob_fake: float
    target: str
    method: str
    site: str
    backward: str
    weights: str
    layers: list[LayerFacts]
    original: Box | None  # where the comparison shows the original
    completeness: dict[str, CompletenessFacts] = field(default_factory=dict)  # by layer, where it was tested
    image_hash: str = ""  # of the file that was explained (`data.stamps`), empty where it is not known
    landmarks_hash: str = ""  # of its landmark file, empty where there was none
    folder: Path = Path()
    chosen: tuple[str, ...] = ()  # how the map was chosen, and what is to be said of a named one
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
        """`frame`, which is image i of the explained batch; `layers` is what was drawn of it.

        `choice`: how the map was chosen; `checks`: of the image's map of each layer.
        """
        gradcam = settings.gradcam
        prediction, target = explanation.prediction, explanation.target[i]
        real, fake = explanation.real_and_fake[i].tolist()
        if gradcam.signed:
            target = SIGNED_TARGET
        elif target != gradcam.target:
            target = f"{gradcam.target} ({target})"
        weights = settings.weights_name or RANDOM_WEIGHTS
        return cls(
            index=frame.index,
            path=frame.path,
            dataset=frame.dataset,
            forgery=frame.forgery,
            video=frame.video,
            label=frame.label,
            logits=(real, fake),
            prob_fake=float(prediction["prob"][i]),
            target=target,
            method=explanation.method,
            site=explanation.site,
            backward=explanation.backward,
            weights=weights,
            layers=[LayerFacts.of(layer)._replace(check=(checks or {}).get(layer.name)) for layer in layers],
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
        return {
            "index": self.index,
            "path": self.path,
            "dataset": self.dataset,
            "forgery": self.forgery,
            "video": self.video,
            "label": None if self.label == UNKNOWN else self.label,
            "predicted": self.predicted,
            "correct": self.correct,
            "confidence": self.confidence,
            "prob_fake": self.prob_fake,
            "logit_real": self.logits[0],
            "logit_fake": self.logits[1],
            "target": self.target,
            "method": self.method,
            "site": self.site,
            "backward": self.backward,
            "weights": self.weights,
            "layers": [layer.to_json() for layer in self.layers],
            "chosen": list(self.chosen),
            "original": self.original._asdict() if self.original else None,
            "completeness": {name: tested._asdict() for name, tested in self.completeness.items()},
            "image_hash": self.image_hash,
            "landmarks_hash": self.landmarks_hash,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Sample:
        """The sample that `to_json` gave. Raises KeyError, TypeError or ValueError for anything else.

        Runs of earlier versions have no hashes, no other backward pass than the plain one, and no choice.
        """
        later = {"image_hash": "", "landmarks_hash": "", "backward": "plain", "chosen": [], "completeness": {}}
        values = {**later, **values}
        return cls(
            index=count(values, "index"),
            path=string(values, "path"),
            dataset=string(values, "dataset"),
            forgery=string(values, "forgery"),
            video=string(values, "video"),
            label=UNKNOWN if values["label"] is None else count(values, "label", 1),
            logits=(number(values, "logit_real"), number(values, "logit_fake")),
            prob_fake=number(values, "prob_fake", 0, 1),
            target=string(values, "target"),
            method=string(values, "method"),
            site=string(values, "site"),
            backward=string(values, "backward"),
            weights=string(values, "weights"),
            layers=[LayerFacts.from_json(layer) for layer in values["layers"]],
            original=Box(*(count(values["original"], key) for key in Box._fields)),
            chosen=tuple(map(str, values["chosen"])),
            completeness={
                str(name): CompletenessFacts(number(tested, "error"), number(tested, "bias_share"))
                for name, tested in values["completeness"].items()
            },
            image_hash=string(values, "image_hash"),
            landmarks_hash=string(values, "landmarks_hash"),
        )

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> Sample:
        """What a row of predictions.csv has of a sample."""
        return cls(
            int(row["index"]), row["path"], row["dataset"], row["forgery"], row["video"], int(row["label"]),
            (float(row["logit_real"]), float(row["logit_fake"])), float(row["prob_fake"]),
            target="", method="", site="", backward="", weights="", layers=[], original=None,
        )  # fmt: skip

    @functools.cached_property
    def predicted(self) -> int:
        """0 real, 1 fake."""
        return predicted(self.prob_fake)

    @functools.cached_property
    def confidence(self) -> float:
        """Probability of the predicted class."""
        return confidence(self.prob_fake)

    @property
    def faint_layers(self) -> list[str]:
        """The layers that count for next to nothing beside another one."""
        return faint_layers({layer.name: layer.raw_maximum for layer in self.layers})

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

    def raw_map(self, layer: LayerFacts) -> np.ndarray:
        """A map as it lies on disk: (h, w) float32, to half of 1/255 of its range. Raises UnreadableImage."""
        grey = read_grey_map(self.folder / GREY_MAPS / grey_name(layer.name))
        return grey * (layer.raw_maximum - layer.raw_minimum) + layer.raw_minimum
