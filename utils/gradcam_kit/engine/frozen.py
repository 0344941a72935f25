"""Leave the model and the process as they were: an explanation leaves no trace and does not affect another."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from itertools import chain
from operator import is_
from typing import Any

import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from ..base.errors import InputError

# Concurrent explanations would see each other's frozen weights and global random state, so they run one at a time, even
# for different detectors. The state to restore is recorded inside the lock, where no other explanation can change it.
_one_at_a_time = threading.RLock()
# Fork only between explanations: otherwise, in the child, the model would stay frozen and the lock taken.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_one_at_a_time.acquire, after_in_parent=_one_at_a_time.release, after_in_child=_one_at_a_time.release
    )
QUANTISED = tuple(f"torch.{place}nn.{kind}quantized" for place in ("", "ao.") for kind in ("", "intrinsic."))


class Structure:
    """The modules of a model, each once, and what each held under which name. Comparing needs no walk of the model.

    `compiled`: the parts made by `torch.compile`: holder, name, part. `sharded`: the FullyShardedDataParallel inside.
    `usable`: the list of `parameters` that was checked to be fit for gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = list(model.modules())
        self.children = [dict(module._modules) for module in self.modules]
        self.compiled = [
            (module, name, child)
            for module in self.modules
            for name, child in module._modules.items()
            if child is not None and "_orig_mod" in child._modules
        ]
        self.sharded = [module for module in self.modules if type(module).__name__ == "FullyShardedDataParallel"]
        self.usable: list[nn.Parameter] | None = None
        self._held: list[nn.Parameter | None] = []
        self._parameters: list[nn.Parameter] = []

    def still_holds(self) -> bool:
        """True if no module was added, replaced, renamed or moved since."""
        return [module._modules for module in self.modules] == self.children

    def parameters(self) -> list[nn.Parameter]:
        """Return every current parameter once; the same list as before if all are the same objects."""
        held = list(chain.from_iterable([module._parameters.values() for module in self.modules]))
        if len(held) != len(self._held) or not all(map(is_, held, self._held)):
            self._held, self._parameters = held, list({id(one): one for one in held if one is not None}.values())
        return self._parameters


@contextmanager
def frozen_for_explaining(model: nn.Module, structure: Structure | None = None) -> Iterator[None]:
    """Put `model` in evaluation mode with constant weights and gradients enabled; restore it afterwards.

    `structure`: the model's, if the caller has it already.
    """
    structure = Structure(model) if structure is None else structure
    modules, parameters = structure.modules, structure.parameters()
    if structure.usable is not parameters:
        _refuse_unusable(model, modules, parameters)
        structure.usable = parameters
    _refuse_open_pass(structure.sharded)
    on_cuda = torch.cuda.is_initialized()
    devices = {parameter.device for parameter in parameters if parameter.is_cuda} if on_cuda else ()
    with _one_at_a_time, torch.random.fork_rng(devices=sorted(devices, key=str)):
        training, trained = _in_training(modules), _trained(parameters)
        try:
            for module in training:
                module.training = False
            for parameter in trained:
                parameter.requires_grad = False
            with plain_forward(structure), torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            # The model's own code may have changed flags too; usually none is set now.
            for module, mode in [*((one, False) for one in _in_training(modules)), *((one, True) for one in training)]:
                module.training = mode
            for parameter in _trained(parameters):
                parameter.requires_grad = False
            for parameter in trained:
                parameter.requires_grad = True


# Setting a flag is slow, and a tower has hundreds: only those that are set are touched.
def _in_training(modules: Sequence[nn.Module]) -> list[nn.Module]:
    return [module for module in modules if module.training]


def _trained(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def _refuse_unusable(model: nn.Module, modules: Sequence[nn.Module], parameters: Sequence[nn.Parameter]) -> None:
    """Raise InputError for a model that cannot be differentiated."""
    if any(map(Tensor.is_inference, parameters)):
        raise InputError("the model was built inside torch.inference_mode(), which forbids gradients: build it outside")
    for kind in {type(module) for module in modules}:
        if kind.__module__.startswith(QUANTISED):
            name = next(name for name, module in model.named_modules() if type(module) is kind)
            raise InputError(
                f"{type(model).__name__} has 8-bit layers ({name}), through which no gradient passes: explain the"
                " unquantised model"
            )
    on_meta = [parameter for parameter in parameters if parameter.is_meta]
    if on_meta and not any(hasattr(module, "_hf_hook") for module in modules):  # accelerate brings them back
        name = next(name for name, parameter in model.named_parameters() if parameter.is_meta)
        raise InputError(
            f"{type(model).__name__} has {len(on_meta)} weights without data, on the meta device ({name}): load its"
            " weights first"
        )


def _refuse_open_pass(sharded: Iterable[nn.Module]) -> None:
    """Raise InputError if FullyShardedDataParallel waits for the backward pass of an earlier forward pass."""
    for module in sharded:
        if hasattr(getattr(getattr(module, "_handle", None), "flat_param", None), "_post_backward_hook_state"):
            raise InputError(
                "a forward pass of FullyShardedDataParallel waits for its backward(): explain after backward(), or run"
                " that pass under torch.no_grad(); fully_shard has no such limit"
            )


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set `owner.name` to `value` inside, for the whole process; no explanation or other patch runs meanwhile."""
    with _one_at_a_time:
        inherited = name not in vars(owner)
        original = vars(owner).get(name)  # the stored value: a classmethod, not a method bound to its class
        setattr(owner, name, value)
        try:
            yield
        finally:
            delattr(owner, name) if inherited else setattr(owner, name, original)


@contextmanager
def replaced_forward(modules: Iterable[nn.Module], run: Callable[..., Any]) -> Iterator[None]:
    """Within this context, each of `modules` calls `run(module, its own forward, *arguments)`.

    Enter it inside `frozen_for_explaining`.
    """
    changed = list(modules)
    before = [vars(module).get("forward") for module in changed]
    try:
        for module in changed:
            vars(module)["forward"] = partial(run, module, module.forward)
        yield
    finally:
        for module, forward in zip(changed, before, strict=True):
            if forward is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = forward


@contextmanager
def plain_forward(structure: Structure) -> Iterator[None]:
    """Run a model with this structure so that hooks see it: each module once, in Python.

    It switches off three features that bypass hooks or run a module twice: `torch.compile`, gradient checkpointing, and
    the fused kernels of `nn.TransformerEncoderLayer` in evaluation (the last two for the whole process). It also
    corrects the gradient of `F.batch_norm`.
    """
    with ExitStack() as undo, patched(F, "batch_norm", wraps(F.batch_norm)(partial(_batch_norm, F.batch_norm))):
        for module, name, child in structure.compiled:
            undo.callback(module._modules.__setitem__, name, child)
            module._modules[name] = child._modules["_orig_mod"]
        for module in [module for module in structure.modules if "_compiled_call_impl" in module.__dict__]:
            undo.callback(setattr, module, "_compiled_call_impl", module._compiled_call_impl)  # of module.compile()
            module._compiled_call_impl = None
        _without_checkpointing(undo)
        switch: Any = getattr(torch.backends, "mha", None)
        if switch is not None:  # from PyTorch 2.2 on; before, an error says that such a layer does not run
            undo.callback(switch.set_fastpath_enabled, switch.get_fastpath_enabled())
            switch.set_fastpath_enabled(False)
        yield


def _batch_norm(usual: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Compute `F.batch_norm` with its formula's gradient: the output's times weight / √(variance + ε).

    On the CPU, PyTorch (at least 2.13) reads a channels-last gradient, e.g. after a transformer's tokens, in the wrong
    order if the batch is a single image.
    """
    output = usual(*args, **kwargs)
    node = output.grad_fn
    if node is None or not output.is_cpu or len(output) > 1 or node.name() != "NativeBatchNormBackward0":
        return output
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = {"weight": None, "training": False, "eps": 1e-5, **dict(zip(names, args, strict=False)), **kwargs}
    if given["training"]:
        return output
    scale = (given["running_var"].detach() + given["eps"]).rsqrt()
    scale = scale if given["weight"] is None else scale * given["weight"].detach()
    scale = scale.view(-1, *[1] * (output.ndim - 2)).to(output.dtype)
    node.register_hook(lambda inputs, outputs: (outputs[0] * scale, *inputs[1:]))
    return output


def _without_checkpointing(undo: ExitStack) -> None:
    """Make `torch.utils.checkpoint.checkpoint` simply run its function, under any name a module imported it by."""
    module: Any = torch.utils.checkpoint
    for name, value in (("CheckpointFunction", _Run), ("_checkpoint_without_reentrant_generator", _run_once)):
        undo.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, value)


class _Run:
    """Stands for the function of checkpointing that re-enters autograd."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


def _run_once(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield  # before the checkpointed function runs; it ends when the function has
