"""A host's constructor without the published weights that it loads or downloads: a checkpoint overwrites them anyway.

In place of a file the constructor gets the random weights of the network that it has just built, under that network's
own names, and what it then loads into a network changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

from ...base.errors import InputError
from ...base.text import one_line
from ...engine.frozen import patched
from ..clip_tower import KNOWN_TOWERS
from .device import cuda_means


class AbsentWeights(dict[str, Any]):
    """Stands for what `torch.load(path)` would have returned. Wrappers such as `["state_dict"]` lead to itself."""

    def __init__(self, path: str, weights: Mapping[str, Any]) -> None:
        super().__init__(weights)
        self.path = path

    def __missing__(self, key: str) -> AbsentWeights:
        return self


@contextmanager
def no_pretrained_weights(detector: str) -> Iterator[None]:
    """For the time of a host detector's constructor. Raises InputError, which names it, where the constructor fails.

    Also where there is no GPU and the constructor moves something to one: it stays on the CPU.
    """
    built: list[nn.Module] = []
    asked: list[str] = []

    def load(file: Any, *arguments: Any, **options: Any) -> AbsentWeights:
        asked.append(str(file))
        return AbsentWeights(str(file), _just_built(built).state_dict())

    with ExitStack() as patches:
        for owner, name, value in (
            (nn.Module, "__init__", _noting(nn.Module.__init__, built)),
            (nn.Module, "load_state_dict", _loads_nothing),
            (torch, "load", load),
            (torch.hub, "download_url_to_file", lambda *arguments, **options: None),
            *_libraries(),
        ):
            patches.enter_context(patched(owner, name, value))
        if not torch.cuda.is_available():
            patches.enter_context(cuda_means(torch.device("cpu")))
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # of the host's own code, which nobody here knows
            raise InputError(
                f"detector {detector!r} cannot be built here{_files(asked)}: {type(error).__name__}: {_reason(error)}"
            ) from error
    kept = [value.path for module in built for value in vars(module).values() if isinstance(value, AbsentWeights)]
    if kept:
        raise InputError(f"detector {detector!r} cannot be built here{_files(kept)}: it is no state dict of a network")


def _noting(original: Callable[..., None], built: list[nn.Module]) -> Callable[..., None]:
    def initialise(self: nn.Module, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        built.append(self)

    return initialise


def _just_built(built: list[nn.Module]) -> nn.Module:
    """The last network that is part of no other yet, or else the detector, which is the first module.

    A single layer is no network: those that a constructor has made and replaced are part of no other either.
    """
    inside = {id(child) for module in built for child in module.children()}
    networks = [
        module
        for module in built[1:]
        if id(module) not in inside and any(child.state_dict() for child in module.children())
    ]
    return networks[-1] if networks else built[0]


def _loads_nothing(self: nn.Module, state_dict: Mapping[str, Any], *arguments: Any, **options: Any) -> Any:
    own = self.state_dict()
    missing, unexpected = [key for key in own if key not in state_dict], [key for key in state_dict if key not in own]
    return _IncompatibleKeys(missing, unexpected)


def _files(asked: list[str]) -> str:
    names = list(dict.fromkeys(asked))
    return f" without the weights that its constructor loads ({', '.join(names[:3])})" if names else ""


def _reason(error: Exception) -> str:
    file = getattr(error, "filename", None)
    return f"{one_line(error)}: {file}" if file else one_line(error)


# ------------------------------------------------------------------------------------- libraries with ways of their own


def _libraries() -> Iterator[tuple[Any, str, Any]]:
    """What to replace in the libraries that the host has imported, besides the loading of files."""
    if "transformers" in sys.modules:
        from transformers import PreTrainedModel

        yield PreTrainedModel, "from_pretrained", classmethod(_from_config)
    builder = sys.modules.get("timm.models._builder")
    if builder is not None:
        yield builder, "load_pretrained", lambda *arguments, **options: None


def _from_config(cls: Any, name: Any, *arguments: Any, **options: Any) -> Any:
    """`cls.from_pretrained(name)` with random weights: the architecture of a known CLIP, or what a config.json says."""
    config = options.get("config") or _known_clip(cls, str(name)) or cls.config_class.from_pretrained(name)
    return cls(config)


def _known_clip(cls: Any, name: str) -> Any:
    """The config of a published CLIP, also where the host names the folder of a hub's cache; None for others."""
    hub_names = [part[len("models--") :].replace("--", "/") for part in Path(name).parts if part.startswith("models--")]
    fields = KNOWN_TOWERS.get(hub_names[0] if hub_names else name)
    if fields is None or cls.config_class.model_type not in ("clip", "clip_vision_model"):
        return None
    if cls.config_class.model_type == "clip_vision_model":
        return cls.config_class(**fields)
    joint = 768 if fields["hidden_size"] == 1024 else 512
    text = {"hidden_size": joint, "intermediate_size": 4 * joint, "num_attention_heads": joint // 64}
    return cls.config_class(vision_config=fields, text_config=text, projection_dim=joint)
