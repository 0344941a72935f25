"""Checked reading of a config (YAML, flags, a dict) by the table of options: any key, the network's, `gradcam_*`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_origin

from ..base.allowed import AUTO, BACKWARDS, SITES, TARGETS, TRANSPLANT
from ..base.errors import InputError, did_you_mean
from ..base.files import expanded
from ..base.text import shortened
from ..base.typed import Meta, Misfit, fit
from ..engine.heads import named_classes
from ..engine.real.contrast import CONTRASTS
from ..engine.recipe import Recipe, site_of
from .options import LARGEST, OPTIONS, RGB, Option, method_names

MAX_VALUES = 100_000
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)")
_MISSING = object()
GRADCAM_KEYS = [key for key in OPTIONS if key.startswith("gradcam_")]


def refuse_odd_values(values: Any, where: str) -> None:
    """Raises InputError for what no manifest can say: NaN, huge integers, dates as keys, circles of aliases."""
    waiting, seen = [values], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise InputError(f"{where}: stands for more than {MAX_VALUES:,} values; its aliases may lead in a circle")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, (str, int, float, type(None))):
                    found = f"the key {shortened(repr(key))} is a {type(key).__name__}"
                    raise InputError(f"{where}: {found}; allowed: strings")
            waiting += [*value, *value.values()]
        elif isinstance(value, (list, tuple, set)):
            waiting += value
        elif isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{where}: holds {value}; allowed: finite numbers")
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise InputError(f"{where}: holds a number of more than 64 bits; allowed: smaller ones")


class Section:
    """A config, read key by key; errors name the file or the flag, the key, what was found and what is allowed."""

    def __init__(self, values: Mapping[str, Any], where: str, flags: Mapping[str, str] | None = None) -> None:
        """`where`: the file. `flags`: key → the command's flag, for keys whose value was given by one."""
        self.values, self.where, self.flags = values, where, flags or {}

    def name(self, key: str) -> str:
        """Where the value of `key` was given: a flag, or the key in its file."""
        return self.flags.get(key) or f"{self.where}: {key}"

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(key) is not None

    def __getitem__(self, key: str) -> Any:
        return self.get(key, _MISSING if OPTIONS[key].required else OPTIONS[key].default)

    def get(self, key: str, default: Any, choices: Sequence[str] = ()) -> Any:
        """The value of an option of the table, or `default` where there is none. `choices`: instead of the table's."""
        option, value = OPTIONS[key], self.values.get(key)
        if value is None and default is not _MISSING:
            return default
        choices = choices or option.choices
        value = _read(option, value)
        if get_origin(option.type) is list and not isinstance(value, (list, tuple, type(None))):
            value = [value]  # one alone
        try:
            fitted = fit(value, _type(option))
        except Misfit as misfit:
            allowed = ", ".join(choices) or option.words or misfit.allowed
            if value is None:
                close = did_you_mean(key, map(str, self.values))
                raise InputError(f"{self.where}: the key {key} is missing; {close}allowed: {allowed}") from None
            large = isinstance(value, int) and value > LARGEST
            raise self.error(key, f"{allowed}, of 64 bits" if large else allowed) from None
        if choices and fitted not in choices:
            raise self.error(key, ", ".join(choices), did_you_mean(fitted, choices))
        return fitted

    def error(self, key: str, allowed: str, close: str = "") -> InputError:
        """What to raise where the value of `key` is not what is `allowed`; `close` as `did_you_mean` gives it."""
        return InputError(f"{self.name(key)} is {shortened(repr(self.values.get(key)))}; {close}allowed: {allowed}")


def _read(option: Option, value: Any) -> Any:
    """`value` with its paths expanded, and with numbers in place of text: YAML 1.1 takes 1e-3 for a string."""
    if isinstance(value, (list, tuple)):
        return [_read(option, one) for one in value]
    if not isinstance(value, str):
        return value
    if option.path:
        return expanded(value)
    return as_number(value) if option.type in (int, float, RGB) else value


def as_number(text: str) -> Any:
    """`"1e-3"` → 0.001, and a whole number where it is one; anything else stays as it is."""
    if not _NUMBER.fullmatch(text):
        return text
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < LARGEST else number


def with_numbers(values: Any) -> Any:
    """`values`, of any depth, with numbers in place of text such as 1e-5."""
    if isinstance(values, Mapping):
        return {key: with_numbers(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [with_numbers(value) for value in values]
    return as_number(values) if isinstance(values, str) else values


def _type(option: Option) -> Any:
    """As msgspec understands it."""
    if option.type in (int, float):
        return Annotated[option.type, Meta(ge=option.least, le=option.most)]
    return Annotated[option.type, Meta(min_length=1)] if get_origin(option.type) is list else option.type


def backbone_config(config: Mapping[str, Any], where: str = "config") -> Mapping[str, Any]:
    """`config["backbone_config"]`, empty where it is missing. Raises InputError for anything but a mapping."""
    values: Mapping[str, Any] = Section(config, where).get("backbone_config", {})
    return values


def clip_size_of(
    config: Mapping[str, Any], where: str = "config", flags: Mapping[str, str] | None = None
) -> int | None:
    """Frames of a clip of a detector that reads clips; None for one of images, whatever is said of clips.

    Raises InputError for `video_mode: true` without `clip_size`.
    """
    section = Section(config, where, flags)
    if not section["video_mode"]:
        return None
    size: int | None = section["clip_size"]
    if size is None:
        raise InputError(
            f"{where}: video_mode is true, but the key clip_size is missing: give --clip_size", "clip_size"
        )
    return size


def without_pretrained(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` for a detector whose pretrained network is not downloaded: its weights come later, or never."""
    return {**config, "backbone_config": {**backbone_config(config), "pretrained": False}}


@dataclass(frozen=True, slots=True, kw_only=True)
class GradCAMSettings:
    """The `gradcam_*` keys of a config. `classes` and `labels` as in `engine.heads.HeadReader`."""

    enabled: bool
    recipe: Recipe  # which map; a field "auto" is left to a trial
    recipes: tuple[Recipe, ...]  # where several kinds are drawn: all of them, `recipe` among them
    save_dir: Path
    target: str
    backward_precision: str
    samples: int | None
    pp_epsilon: float
    colormap: str
    signed: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: dict[str, bool] | None
    labels: dict[str, int]
    says_nothing: bool  # neither method nor layers are in the config, so that only a command chooses by itself

    @property
    def chooses(self) -> bool:
        """Whether the map is still to be chosen."""
        return self.recipe.is_open

    @property
    def compares(self) -> bool:
        """Whether a map is named that compares patches with those of real images."""
        return any(one.method in CONTRASTS for one in (self.recipe, *self.recipes))


def gradcam_settings(
    config: Mapping[str, Any], where: str = "config", flags: Mapping[str, str] | None = None
) -> GradCAMSettings:
    """The Grad-CAM settings of a detector's config; `where`, `flags` as for `Section`. Raises InputError."""
    for key in map(str, config):
        if key.startswith("gradcam_") and key not in GRADCAM_KEYS:
            close = did_you_mean(key, GRADCAM_KEYS)
            raise InputError(f"{where}: the key {key} is unknown; {close}allowed: {', '.join(GRADCAM_KEYS)}")
    section = Section(config, where, flags)
    classes = section["gradcam_classes"]
    classes = None if classes is None else named_classes(classes, f"{where}: gradcam_classes")
    labels = {str(name): number for name, number in section.get("label_dict", {}).items() if type(number) is int}
    target = section.get("gradcam_target", "predicted", list(dict.fromkeys((*TARGETS, *(classes or labels)))))
    signed = section["gradcam_signed"]
    if signed and target not in ("predicted", "margin"):
        raise InputError(
            f"{section.name('gradcam_signed')} shows the evidence for fake and for real at once, so gradcam_target"
            f" {target!r} does not go with it; leave gradcam_target out, or set it to margin"
        )
    _check_scale(section)
    recipes = _recipes(section)
    return GradCAMSettings(
        enabled=section["gradcam_enabled"],
        recipe=next((one for one in recipes if one.is_open), recipes[0]),
        recipes=recipes if len(recipes) > 1 else (),
        save_dir=Path(section["gradcam_save_dir"]),
        target="margin" if signed else target,
        backward_precision=section["gradcam_backward_precision"],
        samples=section["gradcam_samples"],
        pp_epsilon=section["gradcam_pp_epsilon"],
        colormap=section["gradcam_colormap"],
        signed=signed,
        mean=section["mean"],
        std=section["std"],
        classes=classes,
        labels=labels,
        says_nothing=not any(map(section.has, ("gradcam_method", "gradcam_layers", "gradcam_recipes"))),
    )


def _check_scale(section: Section) -> None:
    """Raises InputError for `mean` or `std` of pixels from 0 to 255: images are divided by 255 first."""
    for key in ("mean", "std"):
        values = section[key]
        if any(abs(value) > 1 for value in values):
            of_255 = " ".join(f"{value / 255:.4g}" for value in values)
            raise section.error(
                key, f"numbers of at most 1, since images are divided by 255 first; divided by 255 these are {of_255}"
            )
        if key == "std" and min(values) <= 0:
            raise section.error(key, "numbers above 0")


def _recipes(section: Section) -> tuple[Recipe, ...]:
    """Which maps: one, or one of each of the methods that `gradcam_recipes` names."""
    methods, where = section["gradcam_recipes"], section.name("gradcam_recipes")
    method = section.get("gradcam_method", None, method_names())
    if methods is None:
        return (_recipe(section, method),)
    if method is not None:
        raise InputError(f"{where} stands instead of {section.name('gradcam_method')}: give one or the other")
    for method in methods:
        if method not in method_names():
            close = did_you_mean(method, method_names())
            raise InputError(f"{where} names {method!r}; {close}allowed: {', '.join(method_names())}")
    if len(set(methods)) < len(methods):
        raise InputError(f"{where} names a method twice: {', '.join(methods)}; name each once")
    if TRANSPLANT in methods and len(methods) > 1:
        raise InputError(f"{where} names {TRANSPLANT} beside others, with which it shares no pass: give it alone")
    every = [_recipe(section, method) for method in methods]
    return tuple(one if one.method == AUTO else one.closed() for one in every)


def _recipe(section: Section, method: str | None) -> Recipe:
    """Which map: what is named is drawn as named, anything else is left to a trial."""
    layers = section["gradcam_layers"]
    if layers and AUTO in layers and len(layers) > 1:
        where = section.name("gradcam_layers")
        raise InputError(f"{where} names {AUTO!r} beside others; give {AUTO} alone, or the layers")
    method = method or ("gradcam" if layers and AUTO not in layers else AUTO)
    if method == AUTO and layers is None:
        layers = [AUTO]
    is_open = AUTO in (method, *(layers or ()))
    site = section.get("gradcam_site", AUTO if is_open else SITES[0])
    backward = section.get("gradcam_backward", AUTO)
    if not is_open:
        backward = BACKWARDS[0] if backward == AUTO else backward
        site = site_of(method, backward) if site == AUTO else site
    return Recipe(method, layers, site, backward)
