"""From YAML files and flags to typed settings. Every value from outside is checked once, here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..base.allowed import AUTO
from ..base.errors import InputError, run_checks
from ..base.files import TRAINING_FOLDER, expanded, read_text
from ..base.text import one_line, shortened
from ..data.dataset_json import dataset_file
from ..data.folder_dataset import dataset_name, is_path
from ..data.frame import DataSettings
from ..data.readers import JSON_READER, reader_of
from .config_values import (
    GradCAMSettings,
    Section,
    clip_size_of,
    gradcam_settings,
    refuse_odd_values,
    with_numbers,
)
from .published import is_published, published_config, published_folder


class DetectorSettings(NamedTuple):
    """The detector and its weights. `config` is the YAML's dict that the detector's constructor receives.

    `build` names a function that builds the model (`model.load`); "" for a registered detector.
    """

    config: dict[str, Any]
    model_name: str
    weights_path: Path | None
    resolution: int
    gradcam: GradCAMSettings
    build: str = ""

    @property
    def clip_size(self) -> int | None:
        """Frames per clip; None for an image detector."""
        return clip_size_of(self.config)

    def with_every_sample(self) -> DetectorSettings:
        """Return these settings without a limit on the number of explained samples."""
        config = {key: value for key, value in self.config.items() if key != "gradcam_samples"}
        return self._replace(config=config, gradcam=replace(self.gradcam, samples=None))

    @property
    def weights_name(self) -> str:
        """The source of the weights: a file, or the function that built the model; "" for random weights."""
        return str(self.weights_path or self.build)


class RunSettings(NamedTuple):
    """All settings of a run over datasets, checked."""

    detector: DetectorSettings
    datasets: list[str]
    data: DataSettings
    batch_size: int
    workers: int
    seed: int


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping. Raises InputError for anything else."""
    try:
        values = yaml.safe_load(read_text(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); give the path of a YAML file") from error
    # PyYAML also raises ValueError, IndexError, RecursionError and KeyError.
    except Exception as error:
        raise InputError(f"{path}: is not valid YAML ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise InputError(f"{path}: holds {kind}; expected a mapping, as in config/detector/clip_gradcam.yaml")
    refuse_odd_values(values, str(path))  # first, because aliases may stand for billions of values
    read: dict[str, Any] = with_numbers(values)
    return read


def find_path(path: str | Path, what: str, where: str) -> Path:
    """Find `path` from the working directory (as the host does), the training folder or its parent.

    `~` and `$VARIABLES` are replaced. Raises InputError if nothing is there.
    """
    path = expanded(str(path))
    tried = [folder / path for folder in dict.fromkeys((Path.cwd(), TRAINING_FOLDER, TRAINING_FOLDER.parent))]
    for candidate in tried:
        if os.path.exists(candidate):  # noqa: PTH110 (Path.exists fails for a name of 5,000 characters)
            return candidate
    looked = ", ".join(shortened(str(place), 300) for place in dict.fromkeys(tried))
    raise InputError(f"{where}: no {what} at {shortened(str(path), 300)!r}; looked at {looked}")


def run_settings(
    detector_path: Path | None,
    test_config: Path | None,
    flags: Mapping[str, Any],
    build: str = "",
    flag_names: Mapping[str, str] | None = None,
    needs_weights: bool = False,
) -> RunSettings:
    """Read the settings of a run. `flags` win over test_config.yaml, which wins over the detector's YAML, as in hosts.

    `flags`: config key → value, None if not given. `flag_names`: config key → flag, for messages. `needs_weights`:
    raise if no weights are named. Raises one InputError that lists every error in the weights and the data.
    """
    test_config = TRAINING_FOLDER / "config" / "test_config.yaml" if test_config is None else test_config
    detector = {} if detector_path is None else read_yaml(detector_path)
    config = _overridden({**detector, **read_yaml(test_config)}, flags)
    if build:
        config = _published(build, config)
    section = Section(config, f"{detector_path or build} + {test_config.name}", _names_given(flags, flag_names))
    detector_checked, data = run_checks(
        lambda: _detector_settings(section, config, needs_weights), lambda: _data_settings(section)
    )
    return RunSettings(
        detector=detector_checked._replace(build=build),
        datasets=data[0],
        data=data[1],
        batch_size=section["test_batchSize"],
        workers=section["workers"],
        seed=section["manualSeed"],
    )


def detector_settings(
    detector_path: Path, flags: Mapping[str, Any], flag_names: Mapping[str, str] | None = None
) -> DetectorSettings:
    """Read a detector's YAML and `flags` without a dataset. Raises InputError."""
    config = _overridden(read_yaml(detector_path), flags)
    return _detector_settings(Section(config, str(detector_path), _names_given(flags, flag_names)), config)


def published_settings(name: str, given: Mapping[str, Any]) -> DetectorSettings:
    """Return the settings of a published detector, `hf:FOLDER`; the keys in `given` win. Raises InputError."""
    config = _published(name, _overridden({}, given))
    return _detector_settings(Section(config, name), config)._replace(build=name)


def _published(build: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return `config` with `build` as model_name and, for `hf:FOLDER`, with the folder's own settings."""
    published = published_config(published_folder(build), config) if is_published(build) else {}
    return {**published, **config, "model_name": build}


def _names_given(flags: Mapping[str, Any], names: Mapping[str, str] | None) -> dict[str, str]:
    """Return `names` without the flags that were not given."""
    return {key: name for key, name in (names or {}).items() if flags.get(key) is not None}


def _overridden(config: dict[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    if flags.get("clip_size") is not None:
        config = {**config, "video_mode": True}
    given = {key: value for key, value in flags.items() if value is not None}
    rivals = {"gradcam_method": "gradcam_recipes", "gradcam_recipes": "gradcam_method"}
    gone = {rivals[key] for key in given if key in rivals}
    if given.get("gradcam_method", AUTO) != AUTO and config.get("gradcam_layers") in (AUTO, [AUTO]):
        # A method named by hand means its paper's formula. The rule in a file that says auto is for the trial's choice.
        gone.add("gradcam_layers")
        config = {**config, "gradcam_site": AUTO, "gradcam_backward": AUTO}
    return {**{key: value for key, value in config.items() if key not in gone}, **given}


def _detector_settings(section: Section, config: dict[str, Any], needs_weights: bool = False) -> DetectorSettings:
    section["backbone_config"]  # checked before anything is built, so that the error names the file
    weights, weights_from = section["weights_path"], section.flags.get("weights_path") or section.where
    if needs_weights and not weights:
        raise no_weights()
    return DetectorSettings(
        config=config,
        model_name=section["model_name"],
        weights_path=find_path(weights, "weights file", weights_from) if weights else None,
        resolution=section["resolution"],
        gradcam=gradcam_settings(config, section.where, section.flags),
    )


def no_weights() -> InputError:
    return InputError(
        "no weights: weights_path is not set in the detector's YAML; give the checkpoint of the whole detector",
        "weights",
    )


def _data_settings(section: Section) -> tuple[list[str], DataSettings]:
    """Return the names of the datasets and their common settings. Raises InputError.

    Keys that only a dataset JSON needs are required only if there is one.
    """
    where, frames = section.where, section
    if isinstance(section.values.get("frame_num"), Mapping):  # one number per split
        number = section.values["frame_num"].get("test")
        if number is None:
            raise InputError(f"{where}: frame_num: the key test is missing; allowed: a whole number of at least 1")
        frames = Section({"frame_num": number}, where, {"frame_num": f"{where}: frame_num: test"})
    labels = section.get("label_dict", {})
    for name, label in labels.items():
        if isinstance(label, bool) or not isinstance(label, int):
            raise InputError(f"{where}: label_dict.{name} is {label!r}; allowed: 0 (real) or 1 (fake)")
    entries = section["test_dataset"]
    json_folder = _path_or_expected(section.get("dataset_json_folder", ""))
    names, folders = _datasets(entries, json_folder)
    root = section["dataset_root_rgb"] or section.values.get("rgb_dir")
    data = DataSettings(
        json_folder=json_folder,
        root=_root_folder(root),
        named_root=root if isinstance(root, str) else "",
        label_dict={str(name): int(label) for name, label in labels.items()},
        compression=section["compression"],
        frame_num=frames["frame_num"],
        sampling=section["frame_sampling"],
        resolution=section["resolution"],
        clip_size=clip_size_of(section.values, section.where, section.flags),
        clips_per_video=section["clips_per_video"],
        lmdb_dir=_path_or_expected(section.get("lmdb_dir", "")) if section["lmdb"] else None,
        folders=folders,
    )
    jsons = [name for name in names if reader_of(name, data) is JSON_READER]
    if jsons:
        run_checks(
            lambda: section["label_dict"],
            lambda: find_path(section["dataset_json_folder"], "dataset_json_folder", where),
        )
    run_checks(*(partial(dataset_file, name, json_folder) for name in jsons))
    return names, data


def _datasets(entries: Sequence[str], json_folder: Path) -> tuple[list[str], dict[str, Path]]:
    """Return the names of the datasets, and the path of each that is a folder or a CSV. Raises InputError."""
    names: dict[str, str] = {}  # name → entry
    folders = {}

    def read(entry: str) -> None:
        name = entry
        if is_path(entry, json_folder):
            name = dataset_name(Path(entry))
            folders[name] = Path(entry).absolute()
        if names.setdefault(name, entry) != entry:
            both = f"{names[name]!r} and {entry!r}"
            raise InputError(f"test_dataset: {both} have the same name {name!r}: rename one of them")

    run_checks(*(partial(read, entry) for entry in entries))
    return list(names), folders


def _path_or_expected(path: str) -> Path:
    """Find `path` as `find_path` does. If nothing is there, return `path`: the reader that needs it raises."""
    try:
        return find_path(path, "", "")
    except InputError:
        return Path(expanded(path))


def _root_folder(root: Any) -> Path | None:
    """Return the first folder that a relative root may mean, or None: JSON files with absolute paths need no root."""
    folders = (Path.cwd(), TRAINING_FOLDER, TRAINING_FOLDER.parent) if isinstance(root, str) else ()
    return next((folder / expanded(root) for folder in folders if os.path.isdir(folder / expanded(root))), None)  # noqa: PTH112
