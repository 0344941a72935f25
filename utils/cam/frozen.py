"""The model and the process left as they were: nothing of an explanation stays behind, nothing of another shows."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from typing import Any, Iterator

import torch
from torch import nn

from utils.cam.plain_forward import plain_forward
from utils.errors import InputError

# Two explanations at once would see each other's frozen weights and global random state: one after the other, also of
# different detectors. What has to be put back is noted inside, where no other explanation has changed it.
_one_at_a_time = threading.RLock()


@contextmanager
def frozen_for_explaining(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation mode with constant weights and gradients enabled, put back as it was afterwards."""
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise InputError("the model was built inside torch.inference_mode(), which forbids gradients: build it outside")
    for name, module in model.named_modules():
        if re.match(r"torch\.(ao\.)?nn\.(quantized|intrinsic\.quantized)", type(module).__module__):
            raise InputError(
                f"{type(model).__name__} has 8-bit layers ({name}), through which no gradient passes: explain the model"
                " before it is quantised"
            )
    on_meta = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if on_meta and not any(hasattr(module, "_hf_hook") for module in model.modules()):  # accelerate brings them back
        raise InputError(
            f"{type(model).__name__} has {len(on_meta)} weights without data, on the meta device ({on_meta[0]}): load"
            " its weights first"
        )
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with _one_at_a_time, torch.random.fork_rng(devices=sorted(devices, key=str)):
        modes = [(module, module.training) for module in model.modules()]
        parameters = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        try:
            for module, _ in modes:
                module.training = False
            for parameter, _ in parameters:
                parameter.requires_grad_(False)
            with plain_forward(model), torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            for module, training in modes:
                module.training = training
            for parameter, requires_grad in parameters:
                parameter.requires_grad_(requires_grad)


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` inside, for the whole process: no explanation runs meanwhile, nor another patch."""
    with _one_at_a_time:
        inherited = name not in vars(owner)
        original = vars(owner).get(name)  # as it stands there: a classmethod, not a method bound to its class
        setattr(owner, name, value)
        try:
            yield
        finally:
            delattr(owner, name) if inherited else setattr(owner, name, original)
