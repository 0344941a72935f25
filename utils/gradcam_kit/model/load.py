"""Loading of a detector from settings and weights, and of image files as its input."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..base.errors import InputError
from ..base.files import expanded
from ..base.text import one_line
from ..data.images import UnreadableImage, decode_image, read_file
from ..explaining.any_model import AnyModelWithGradCAM
from ..settings.config import DetectorSettings, detector_settings, find_path, no_weights, published_settings
from ..settings.config_values import without_pretrained
from ..settings.published import is_published, published_folder
from .checkpoints import fill, sha256_of_state, translate
from .clip_tower import fitted_config
from .detector import DTYPES, LoadedDetector
from .host.registry import find_detectors, preimport_detector, unknown_detector
from .weights_file import read_file as read_weights

EMBEDDED_DETECTOR = "config/detector/clip_gradcam_demo.yaml"


def load_gradcam_detector(
    detector_path: str | Path, weights_path: str | Path | None = None, device: str = "auto", **settings: Any
) -> Any:
    """Load the detector of a YAML with its weights, in evaluation mode and with heatmaps switched on.

        model = load_gradcam_detector("clip_gradcam.yaml", "weights.pth")
        explanation = model.explain(read_images(model, ["face.png"]))

    Args:
        detector_path: the detector's YAML, relative to the working directory or the training folder; or `hf:FOLDER`, a
            folder with config.json, preprocessor_config.json and weights; or `hf:USER/NAME`, which is downloaded.
        weights_path: checkpoint of the whole detector, .pth or .safetensors; None: the one that the YAML names.
        device: "auto" (CUDA if available), "cpu", "cuda" or "cuda:<n>".
        settings: keys that override the YAML, for example `gradcam_method="hirescam"`.

    Returns:
        An nn.Module with `explain`, `generate_gradcam`, `show_gradcam` and the rest of `GradCAMMixin`.

    Raises:
        InputError: the YAML, the weights or a setting is missing or unusable.
    """
    overridden = {"gradcam_enabled": True, **settings, "weights_path": weights_path and str(weights_path)}
    if is_published(str(detector_path)):
        given = {key: value for key, value in overridden.items() if value is not None}
        return load_detector(published_settings(str(detector_path), given), find_device(device)).model
    yaml_path = find_path(detector_path, "detector YAML", "detector_path")
    return load_detector(detector_settings(yaml_path, overridden), find_device(device)).model


def read_images(model: Any, files: Sequence[str | Path] | str | Path) -> Tensor:
    """Read image files as input for `model`: (B, 3, R, R) float32, normalised, on its device.

    Both sides are resized to the config's `resolution`, as in the benchmarks. Raises InputError for a file that is not
    an image.
    """
    decoded = []
    for file in [files] if isinstance(files, (str, Path)) else files:
        try:
            decoded.append(decode_image(read_file(str(file)), model.usual_size))
        except UnreadableImage as error:
            raise InputError(f"{file}: {error}") from error
    if not decoded:
        raise InputError("files is empty: give at least one image")
    pixels = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float().div(255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.gradcam.mean, model.gradcam.std))
    return ((pixels - mean) / std).to(next(model.parameters()).device)


def load_detector(
    settings: DetectorSettings, device: torch.device, precision: str = "fp32", random_weights: bool = False
) -> LoadedDetector:
    """Load the detector with the weights of `settings.weights_path` or `settings.build`, or with random ones.

    Downloads nothing. `LoadedDetector.check_predictions` tests whether it works. Raises InputError.
    """
    if not settings.weights_name and not random_weights:
        raise no_weights()
    check_precision(precision, device)
    file = None if settings.weights_path is None else read_weights(settings.weights_path)
    if file is not None and not settings.build:
        settings = settings._replace(config=fitted_config(settings.config, translate(file)))
    model = untrained_detector(settings, settings.gradcam.enabled)
    if hasattr(model, "gradcam"):
        model.gradcam = settings.gradcam  # the same object, not a copy
    if hasattr(model, "weights_at_first"):
        model.weights_at_first = None  # weights come from a file, or random ones were requested and are marked
    if file is None:
        sha256 = sha256_of_state(model.model) if settings.build else ""
    else:
        fill(model.model if settings.build else model, file)
        sha256 = file.sha256
    return LoadedDetector(
        model=model.to(device).eval(), device=device, precision=precision, settings=settings, weights_sha256=sha256
    )


def find_device(name: str) -> torch.device:
    """Find the device for "auto", "cpu", "cuda" or "cuda:n". `auto` falls back to the CPU. Raises InputError."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        print("device: cpu (no CUDA device found)")
        return torch.device("cpu")
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", name):
        raise InputError(f"device is {name!r}; allowed: auto, cpu, cuda, cuda:<n>", "device")
    if name != "cpu" and not torch.cuda.is_available():
        raise InputError(f"device {name!r}: PyTorch finds no CUDA device here; use cpu or auto", "device")
    number, count = name.partition(":")[2], torch.cuda.device_count()
    if number and int(number) >= count:
        raise InputError(f"device {name!r}: there are {count} CUDA devices, numbered from 0", "device")
    return torch.device(name)


def check_precision(precision: str, device: torch.device) -> None:
    """Raise InputError if this torch cannot compute in `precision` on `device`; older versions lack fp16."""
    if precision == "fp32":
        return
    unit = torch.ones(1, 1, device=device)
    try:
        with torch.autocast(device.type, dtype=DTYPES[precision]):
            found = torch.nn.functional.linear(unit, unit).dtype
    except RuntimeError as error:
        raise InputError(f"precision {precision}: {one_line(error)}; use fp32 or bf16", "precision") from error
    if found != DTYPES[precision]:
        where = f"{device.type} is not available in torch {torch.__version__}"
        raise InputError(f"precision {precision} on {where}; use fp32 or bf16", "precision")


def untrained_detector(settings: DetectorSettings, explainable: bool) -> Any:
    """Build the detector without weights: a registered one (`clip` means `clip_gradcam`), or that of `settings.build`.

    Raises InputError; with `explainable`, also for a detector without heatmaps.
    """
    if settings.build:
        return AnyModelWithGradCAM(build_model(settings.build, settings.config), settings.config)
    name = settings.model_name
    known = find_detectors(name, settings.config)
    cls = known.get(f"{name}_gradcam") or known.get(name)
    if cls is None:
        raise unknown_detector(name, known)
    if explainable and not hasattr(cls, "generate_gradcam"):
        with_maps = sorted(other for other in known if hasattr(known[other], "generate_gradcam"))
        raise InputError(f"model_name {name!r} has no heatmaps; detectors with heatmaps: {', '.join(with_maps)}")
    return cls(deepcopy(without_pretrained(settings.config)))  # a copy, because some hosts modify their config


def named_detector(
    detector_path: str | None, flags: Mapping[str, object], names: Mapping[str, str]
) -> DetectorSettings:
    """Return the settings of the detector that the flags name, by default the embedded one. Raises InputError."""
    if detector_path is None and flags["weights_path"] is None:
        detector_path = EMBEDDED_DETECTOR
        print(
            "NOTE: without --weights_path this is the bundled toy detector, trained on synthetic faces. It is only"
            " for testing, not for real images. For your detector, give --detector_path and --weights_path."
        )
    yaml_path = find_path(detector_path or "config/detector/clip_gradcam.yaml", "detector YAML", "--detector_path")
    return detector_settings(yaml_path, flags, names)


def load_named_detector(settings: DetectorSettings, device: str, precision: str) -> LoadedDetector:
    """Load the detector that a command's flags name, on the device `device`. Raises InputError."""
    preimport_detector(settings)
    return load_detector(settings, find_device(device), precision)


# A model that user code builds: `my_module:build`, imported from the working directory.


def build_model(name: str, config: Mapping[str, Any]) -> nn.Module:
    """Call the function `name` (`module:function`, `path/to/file.py:function`), which returns a model.

    If `name` is itself a model, return that. Raises InputError.
    """
    if is_published(name):
        return _published_model(name)
    module_name, _, function_name = name.rpartition(":")
    function = getattr(import_module_of(name), function_name, None)
    if isinstance(function, nn.Module):
        return function
    if not callable(function):
        raise InputError(f"--detector {name!r}: {module_name} has no function {function_name!r}")
    try:
        with _own_command_line():
            model = function(dict(config)) if _takes_config(function) else function()
    except (Exception, SystemExit) as error:  # from the user's code
        raise InputError(f"--detector {name!r} failed ({type(error).__name__}: {one_line(error)})") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"--detector {name!r} returned {type(model).__name__}: expected a torch.nn.Module")
    return model


def _published_model(name: str) -> nn.Module:
    from transformers import AutoModelForImageClassification

    folder = published_folder(name)
    try:
        model: nn.Module = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # from transformers
        raise InputError(f"--detector {name!r}: {folder} is no transformers model ({one_line(error)})") from error
    return model.eval()


def import_module_of(name: str) -> ModuleType:
    """Import, once, the module in a `name` given to `build_model`. Raises InputError."""
    module_name, _, function_name = name.rpartition(":")
    if not module_name or not function_name:
        raise InputError(f"--detector {name!r}: give module:function, for example my_module:build")
    try:
        with _own_command_line():
            return _imported(module_name)
    except (Exception, SystemExit) as error:  # from the user's code
        raise InputError(
            f"--detector {name!r}: {module_name} cannot be imported from {Path.cwd()}"
            f" ({type(error).__name__}: {one_line(error)})"
        ) from error


def _imported(module_name: str) -> ModuleType:
    """Import a module of the working directory, or the file that `module_name` is."""
    if not module_name.endswith(".py"):
        _let_own_modules_in(Path.cwd())
        return importlib.import_module(module_name)
    path = Path(expanded(module_name)).absolute()
    _let_own_modules_in(path.parent)
    earlier = sys.modules.get(path.stem)
    if earlier is not None and getattr(earlier, "__file__", None) == str(path):
        return earlier
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found and found.loader, "a name that ends in .py"  # noqa: PT018
    module = importlib.util.module_from_spec(found)
    sys.modules[path.stem] = module  # as an import does: pickling and dataclasses need it
    found.loader.exec_module(module)
    return module


@contextmanager
def _own_command_line() -> Iterator[None]:
    """Show a user's code a command line without our flags: training scripts parse it while they are imported."""
    ours = sys.argv
    sys.argv = ours[:1]
    try:
        yield
    finally:
        sys.argv = ours


class _OwnModules:
    """A finder that searches a user's folder first, as if it were the first entry of `sys.path`.

    It works only in this process. Processes that decode images have to find our `utils`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [self.folder]) if path is None else None


def _let_own_modules_in(folder: Path) -> None:
    """Let a user's module import its own neighbours, even a `utils.py`. We import ours only by longer names."""
    if not any(isinstance(finder, _OwnModules) and finder.folder == str(folder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OwnModules(folder))
        sys.path.append(str(folder))
    own, ours = PathFinder.find_spec("utils", [str(folder)]), sys.modules.get("utils")
    if own is not None and ours is not None and own.origin != getattr(ours, "__file__", None):
        del sys.modules["utils"]
        # For a folder without __init__.py, `inspect` would look for the file that had this name before.
        getattr(inspect, "_filesbymodname", {}).pop("utils", None)


def _takes_config(function: Callable[..., Any]) -> bool:
    """Tell whether the function has a required argument, or one named config."""
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(this.kind in kinds and (this.default is this.empty or this.name == "config") for this in parameters)
