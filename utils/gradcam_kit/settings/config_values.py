"""Checked reading of a config (YAML, flags, a dict) by the table of options."""

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
    """Raise InputError for values that a manifest cannot hold: NaN, huge integers, dates as keys, circular aliases."""
    waiting, seen = [values], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise InputError(f"{where}: stands for more than {MAX_VALUES:,} values; its aliases may form a circle")
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
    """A config that is read key by key. Errors name the file or flag, the key, the value and what is allowed."""

    def __init__(self, values: Mapping[str, Any], where: str, flags: Mapping[str, str] | None = None) -> None:
        """`where`: the file. `flags`: key → flag, for each key that a flag has set."""
        self.values, self.where, self.flags = values, where, flags or {}

    def name(self, key: str) -> str:
        """Name the source of the value of `key`: a flag, or the key in its file."""
        return self.flags.get(key) or f"{self.where}: {key}"

    def has(self, key: str) -> bool:
        """Tell whether the key is there and not null."""
        return self.values.get(key) is not None

    def __getitem__(self, key: str) -> Any:
        return self.get(key, _MISSING if OPTIONS[key].required else OPTIONS[key].default)

    def get(self, key: str, default: Any, choices: Sequence[str] = ()) -> Any:
        """Return an option's value, or `default` if it is not set. `choices` replace those of the table."""
        option, value = OPTIONS[key], self.values.get(key)
        if value is None and default is not _MISSING:
            return default
        choices = choices or option.choices
        value = _read(option, value)
        if get_origin(option.type) is list and not isinstance(value, (list, tuple, type(None))):
            value = [value]  # a single value stands for a list of one
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
        """Return the error for a value of `key` that is not `allowed`; `close`: from `did_you_mean`."""
        return InputError(f"{self.name(key)} is {shortened(repr(self.values.get(key)))}; {close}allowed: {allowed}")


def _read(option: Option, value: Any) -> Any:
    """Expand paths in `value` and convert numbers written as text: YAML 1.1 reads 1e-3 as a string."""
    if isinstance(value, (list, tuple)):
        return [_read(option, one) for one in value]
    if not isinstance(value, str):
        return value
    if option.path:
        return expanded(value)
    return as_number(value) if option.type in (int, float, RGB) else value


def as_number(text: str) -> Any:
    """Convert `"1e-3"` to 0.001 and `"2"` to 2; any other text is returned unchanged."""
    if not _NUMBER.fullmatch(text):
        return text
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < LARGEST else number


def with_numbers(values: Any) -> Any:
    """Convert numbers written as text, such as 1e-5, at any depth of `values`."""
    if isinstance(values, Mapping):
        return {key: with_numbers(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [with_numbers(value) for value in values]
    return as_number(values) if isinstance(values, str) else values


def _type(option: Option) -> Any:
    if option.type in (int, float):
        return Annotated[option.type, Meta(ge=option.least, le=option.most)]
    return Annotated[option.type, Meta(min_length=1)] if get_origin(option.type) is list else option.type


def backbone_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `config["backbone_config"]`, or an empty mapping. Raises InputError if it is not a mapping."""
    values: Mapping[str, Any] = Section(config, "config").get("backbone_config", {})
    return values


def clip_size_of(
    config: Mapping[str, Any], where: str = "config", flags: Mapping[str, str] | None = None
) -> int | None:
    """Return the frames per clip of a clip detector; None for an image detector, even with a clip_size.

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
    """Return `config` with `pretrained` off: nothing is downloaded, because the weights come later or never."""
    return {**config, "backbone_config": {**backbone_config(config), "pretrained": False}}


@dataclass(frozen=True, slots=True, kw_only=True)
class GradCAMSettings:
    """The `gradcam_*` keys of a config. For `classes` and `labels` see `engine.heads.HeadReader`."""

    enabled: bool
    recipe: Recipe  # a trial chooses each field that is "auto"
    recipes: tuple[Recipe, ...]  # all recipes, including `recipe`, if several are drawn; else empty
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
    is_default: bool  # the config names neither method nor layers; then only a command chooses on its own

    @property
    def needs_choice(self) -> bool:
        """Whether a trial still has to choose the map."""
        return self.recipe.is_open

    @property
    def compares(self) -> bool:
        """Whether a named map compares patches with those of real images."""
        return any(one.method in CONTRASTS for one in (self.recipe, *self.recipes))


def gradcam_settings(
    config: Mapping[str, Any], where: str = "config", flags: Mapping[str, str] | None = None
) -> GradCAMSettings:
    """Read the Grad-CAM settings of a detector's config; `where`, `flags` as for `Section`. Raises InputError."""
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
            f"{section.name('gradcam_signed')} shows evidence for fake and for real together, which gradcam_target"
            f" {target!r} cannot; leave gradcam_target out, or set it to margin"
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
        is_default=not any(map(section.has, ("gradcam_method", "gradcam_layers", "gradcam_recipes"))),
    )


def _check_scale(section: Section) -> None:
    """Raise InputError if `mean` or `std` are on the scale 0 to 255: images are divided by 255 first."""
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
    """Return one recipe, or one for each method in `gradcam_recipes`."""
    methods, where = section["gradcam_recipes"], section.name("gradcam_recipes")
    method = section.get("gradcam_method", None, method_names())
    if methods is None:
        return (_recipe(section, method),)
    if method is not None:
        raise InputError(f"{where} and {section.name('gradcam_method')} exclude each other: give one of them")
    for method in methods:
        if method not in method_names():
            close = did_you_mean(method, method_names())
            raise InputError(f"{where} names {method!r}; {close}allowed: {', '.join(method_names())}")
    if len(set(methods)) < len(methods):
        raise InputError(f"{where} names a method twice: {', '.join(methods)}; name each once")
    if TRANSPLANT in methods and len(methods) > 1:
        raise InputError(f"{where} names {TRANSPLANT} and others, but it needs its own pass: give it alone")
    every = [_recipe(section, method) for method in methods]
    return tuple(one if one.method == AUTO else one.closed() for one in every)


def _recipe(section: Section, method: str | None) -> Recipe:
    """Return the recipe that the config names; a trial chooses what it does not name."""
    layers = section["gradcam_layers"]
    if layers and AUTO in layers and len(layers) > 1:
        where = section.name("gradcam_layers")
        raise InputError(f"{where} names {AUTO!r} and other layers; give only {AUTO}, or only the layers")
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
