"""Patches for hosts' code that calls `.cuda()` on any device, `.squeeze()` on any batch, and downloads weights.

A constructor that loads weights gets the random ones of the network it has just built, so loading changes nothing.
"""

from __future__ import annotations

import builtins
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from ...base.errors import InputError
from ...base.text import one_line
from ...engine.frozen import patched
from ..clip_tower import KNOWN_TOWERS


@contextmanager
def cuda_means(device: torch.device) -> Iterator[None]:
    """Let `x.cuda()` of a tensor or module mean `x.to(device)` inside the block."""
    if device.type == "cuda" and device.index in (None, torch.cuda.current_device()):
        yield
        return

    def to_device(this: Any, *where: Any, **options: Any) -> Any:
        return this.to(device)

    with patched(Tensor, "cuda", to_device), patched(nn.Module, "cuda", to_device):
        yield


@contextmanager
def batch_of_one_kept() -> Iterator[None]:
    """Let `x.squeeze()` keep the first dimension inside the block, so that code does not lose a batch of one."""
    original = Tensor.squeeze

    def squeeze(this: Tensor, *dims: Any, **options: Any) -> Tensor:
        if dims or options or this.ndim == 0:
            return original(this, *dims, **options)
        return this.reshape(this.shape[0], *(size for size in this.shape[1:] if size != 1))

    with patched(Tensor, "squeeze", squeeze):
        yield


class AbsentWeights(dict[str, Any]):
    """Replaces the result of `torch.load(path)`. Wrappers such as `["state_dict"]` return itself."""

    path = ""

    def __missing__(self, key: str) -> AbsentWeights:
        return self


@contextmanager
def no_pretrained_weights(detector: str, module: str = "") -> Iterator[None]:
    """Run a host detector's constructor inside the block without weights, and on the CPU if there is no GPU.

    `module`: the constructor's module, which may import libraries late. Raises InputError if the constructor fails.
    """
    built: list[nn.Module] = []
    asked: list[str] = []
    initialise = nn.Module.__init__

    def note(self: nn.Module, *arguments: Any, **options: Any) -> None:
        initialise(self, *arguments, **options)
        built.append(self)

    def load(file: Any, *arguments: Any, **options: Any) -> AbsentWeights:
        asked.append(str(file))
        absent = AbsentWeights(_just_built(built).state_dict())
        absent.path = str(file)
        return absent

    with ExitStack() as patches:
        for owner, name, value in (
            (nn.Module, "__init__", note),
            (nn.Module, "load_state_dict", _load_nothing),
            (torch, "load", load),
            (torch.hub, "download_url_to_file", lambda *arguments, **options: None),
            (builtins, "_logger", logging.getLogger(detector)),  # TALL's file logs with this name without defining it
            *_libraries(module),
        ):
            patches.enter_context(patched(owner, name, value))
        if not torch.cuda.is_available():
            patches.enter_context(cuda_means(torch.device("cpu")))
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # from the host's code
            file = getattr(error, "filename", None)
            reason = f"{type(error).__name__}: {one_line(error)}" + (f": {file}" if file else "")
            raise InputError(f"detector {detector!r} cannot be built here{_without(asked)}: {reason}") from error
    kept = [value.path for module in built for value in vars(module).values() if isinstance(value, AbsentWeights)]
    if kept:
        reason = f"{_without(kept)}: it is not a network's state dict"
        raise InputError(f"detector {detector!r} cannot be built here{reason}")


def _without(files: list[str]) -> str:
    names = ", ".join(list(dict.fromkeys(files))[:3])
    return f" without the weights that its constructor loads ({names})" if files else ""


def _just_built(built: list[nn.Module]) -> nn.Module:
    """Return the last network (a module of modules) that is not part of another, else the detector itself."""
    inside = {id(child) for module in built for child in module.children()}
    roots = (module for module in reversed(built[1:]) if id(module) not in inside)
    return next((root for root in roots if any(child.state_dict() for child in root.children())), built[0])


def _load_nothing(self: nn.Module, state_dict: Mapping[str, Any], *arguments: Any, **options: Any) -> Any:
    own = self.state_dict()
    missing = [key for key in own if key not in state_dict]
    return _IncompatibleKeys(missing, [key for key in state_dict if key not in own])


def _libraries(module: str) -> Iterator[tuple[Any, str, Any]]:
    """Yield the patches for libraries that the host imports."""
    file = getattr(sys.modules.get(module), "__file__", None)
    names = "" if file is None else Path(file).read_text(encoding="utf-8", errors="replace")
    if "transformers" in sys.modules or "from transformers import" in names:
        from transformers import PreTrainedModel

        yield PreTrainedModel, "from_pretrained", classmethod(_from_config)
    builder = sys.modules.get("timm.models._builder")
    if builder is not None:
        yield builder, "load_pretrained", lambda *arguments, **options: None


def _from_config(cls: Any, name: Any, *arguments: Any, **options: Any) -> Any:
    """Replace `cls.from_pretrained(name)`: build a known architecture, or a config.json's, with random weights."""
    config = options.get("config") or _known_clip(cls, str(name)) or _known_video(cls, str(name))
    return cls(config or cls.config_class.from_pretrained(name))


def _known_video(cls: Any, name: str) -> Any:
    """Return the default config of a network for clips: hosts name a hub or another network's weights."""
    is_video = cls.config_class.model_type in ("videomae", "timesformer", "xclip_vision_model")
    return cls.config_class() if is_video and not Path(name, "config.json").is_file() else None


def _known_clip(cls: Any, name: str) -> Any:
    """Return the config of a published CLIP, also for a folder of a hub's cache; None for others."""
    hub_names = [part[len("models--") :].replace("--", "/") for part in Path(name).parts if part.startswith("models--")]
    fields = KNOWN_TOWERS.get(hub_names[0] if hub_names else name)
    if fields is None or cls.config_class.model_type not in ("clip", "clip_vision_model"):
        return None
    if cls.config_class.model_type == "clip_vision_model":
        return cls.config_class(**fields)
    joint = 768 if fields["hidden_size"] == 1024 else 512
    text = {"hidden_size": joint, "intermediate_size": 4 * joint, "num_attention_heads": joint // 64}
    return cls.config_class(vision_config=fields, text_config=text, projection_dim=joint)
