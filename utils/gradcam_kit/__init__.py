"""Show which part of a face a deepfake detector relied on. These are the public names; the library itself uses none.

    from gradcam_kit import explain          # installed with pip
    from utils.gradcam import explain        # inside DeepfakeBench or DF40, or this repository

Each name is imported when it is first used: `explain` and its companions need only torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import old_paths

PLACES = {  # public name → its module, and its name there if it has another one
    "AttentionMethod": ".engine.attention_methods",
    "Bank": ".explaining.real_tokens",
    "Explanation": ".explaining.explanation",
    "InputError": ".base.errors",
    "Recipe": ".engine.recipe",
    "RunError": ".base.errors",
    "TowerFamily": ".engine.towers",
    "choose": ".explaining.api",
    "explain": ".explaining.api",
    "grad_cam": ".engine.methods",
    "grad_cam_plus_plus": ".engine.methods:grad_cam_pp",
    "load": ".model.load:load_gradcam_detector",
    "log_gradcam": ".explaining.training_log",
    "read_images": ".model.load",
    "register_checkpoint": ".model.checkpoint_families",
    "register_method": ".engine.methods",
    "register_reader": ".data.readers",
    "register_tower": ".engine.towers",
}

if TYPE_CHECKING:
    from .base.errors import InputError as InputError
    from .base.errors import RunError as RunError
    from .data.readers import register_reader as register_reader
    from .engine.attention_methods import AttentionMethod as AttentionMethod
    from .engine.methods import grad_cam as grad_cam
    from .engine.methods import grad_cam_pp as grad_cam_plus_plus  # noqa: F401
    from .engine.methods import register_method as register_method
    from .engine.recipe import Recipe as Recipe
    from .engine.towers import TowerFamily as TowerFamily
    from .engine.towers import register_tower as register_tower
    from .explaining.api import choose as choose
    from .explaining.api import explain as explain
    from .explaining.explanation import Explanation as Explanation
    from .explaining.real_tokens import Bank as Bank
    from .explaining.training_log import log_gradcam as log_gradcam
    from .model.checkpoint_families import register_checkpoint as register_checkpoint
    from .model.load import load_gradcam_detector as load  # noqa: F401
    from .model.load import read_images as read_images
else:
    __all__ = list(PLACES)


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, there = PLACES[name].partition(":")
    return getattr(importlib.import_module(module, __name__), there or name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PLACES})


if __name__ == f"{old_paths.HOME}.gradcam_kit":  # the pip package never had old paths
    old_paths.install()
