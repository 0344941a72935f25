"""Published models: a folder with config.json, preprocessor_config.json and weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base.errors import InputError
from ..base.files import read_text
from ..base.text import one_line

PREFIX = "hf:"
REAL = re.compile(
    r"(?<![a-z])(real(ism|istic)?|reals|authentic|human|hum|genuine|original|pristine|natural|bona ?fide|live)(?![a-z])"
)
FAKE = re.compile(
    r"(?<![a-z])((deep ?)?fakes?|ai|artificial|(ai ?)?generated|gan|synthetic|synthesi[sz]ed|spoof(ed)?|manipulated|"
    r"forged|tampered|edited|altered|machine)(?![a-z])"
)
NOT = re.compile(r"(?<![a-z])(not|non|un|no|in)[ -]*(?=[a-z])")


def is_published(name: str) -> bool:
    """Tell whether `name` has the form `hf:FOLDER` or `hf:USER/NAME`."""
    return name.startswith(PREFIX)


def published_folder(name: str) -> Path:
    """Return the folder of `hf:FOLDER`. If there is none, download `hf:USER/NAME` from the hub.

    Raises InputError.
    """
    folder = Path(name.removeprefix(PREFIX)).expanduser()
    if folder.is_dir() and name != PREFIX:
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name.removeprefix(PREFIX)):
        raise InputError(f"{name!r}: no folder {str(folder)!r}; give a folder with a config.json and weights")
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name.removeprefix(PREFIX)))
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{name!r}: no such folder, and the hub cannot be reached: download the model where there is a network, and"
            " give its folder, hf:FOLDER"
        ) from error
    except Exception as error:  # from the network or the hub
        raise InputError(f"{name!r}: no such folder, nor on the hub ({type(error).__name__})") from error


def published_config(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read resolution, mean, std and gradcam_classes from a published folder; gradcam_classes in `given` wins.

    Raises InputError.
    """
    config, found = _read(folder / "config.json"), dict[str, Any]()
    if given.get("gradcam_classes") is None:
        found["gradcam_classes"] = real_and_fake(config, folder)
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return found
    said = _read(path)
    size = said.get("crop_size") if said.get("do_center_crop") and said.get("crop_size") else said.get("size")
    sides = list(size.values()) if isinstance(size, Mapping) else [size]
    if sides and isinstance(sides[0], int):
        found["resolution"] = sides[0]
    for key, name in (("mean", "image_mean"), ("std", "image_std")):
        value = said.get(name)
        if said.get("do_normalize", True) and value is not None:
            found[key] = value if isinstance(value, list) else [value] * 3
        elif not said.get("do_normalize", True):
            found[key] = [0.0 if key == "mean" else 1.0] * 3
    return found


def real_and_fake(config: Mapping[str, Any], folder: Path) -> list[dict[str, str]]:
    """Derive `gradcam_classes` from the names in id2label. Raises InputError if the names do not tell."""
    labels = config.get("id2label")
    items = labels.items() if isinstance(labels, Mapping) else ()
    ordered = [str(name) for _, name in sorted(items, key=lambda item: int(item[0]))]
    kinds = [_kind(name) for name in ordered]
    if "" in kinds or not {"real", "fake"} <= set(kinds):
        raise InputError(
            f"{folder / 'config.json'}: id2label ({', '.join(ordered) or 'none'}) does not tell which classes"
            " are real and which are fake: set gradcam_classes, e.g. [{first: real}, {second: fake}]",
            "gradcam_classes",
        )
    return [{name: kind} for name, kind in zip(ordered, kinds, strict=True)]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(found, Mapping):
        raise InputError(f"{path} holds {type(found).__name__}, not a mapping of settings")
    return found


def _kind(name: str) -> str:
    """Return "real" or "fake"; "" if the name tells neither, or both."""
    words = re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower().replace("_", " ").replace("-", " ")
    turned = NOT.search(words) is not None
    words = NOT.sub("", words)
    real, fake = bool(REAL.search(words)), bool(FAKE.search(words))
    if real == fake:
        return ""
    return "fake" if fake != turned else "real"
