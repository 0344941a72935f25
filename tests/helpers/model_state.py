"""What an explanation has to leave as it was."""

from __future__ import annotations

from typing import Any

import torch


def state_of(model: torch.nn.Module) -> Any:
    """Everything rule 1 promises to leave alone."""
    modules = [
        (module.training, len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
        for module in model.modules()
    ]
    parameters = [
        (one.requires_grad, None if one.grad is None else one.grad.clone(), one.detach().clone())
        for one in model.parameters()
    ]
    return modules, parameters, torch.get_rng_state(), torch.is_grad_enabled()


def assert_same_state(before: Any, after: Any) -> None:
    assert before[0] == after[0] and before[3] == after[3] and torch.equal(before[2], after[2])
    for (flag, grad, value), (flag_after, grad_after, value_after) in zip(before[1], after[1], strict=True):
        assert flag == flag_after and torch.equal(value, value_after)
        assert (grad is None and grad_after is None) or torch.equal(grad, grad_after)
