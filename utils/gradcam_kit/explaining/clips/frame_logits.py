"""Each frame's own logits, for a detector whose decision is their mean (STIL): exact, without a gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...base.errors import InputError
from ...base.threads import hooked
from .subject import ClipSubject

ALIKE = 1e-4  # tolerance between the frames' mean and the clip's logits, as a share of the largest logit


def frame_logits(subject: ClipSubject, clips: Tensor) -> Tensor:
    """Return the logits (B, T, K) of each frame of clips (B, T, 3, H, W); their mean over T is the clip's logits.

    They are the output of a linear layer or a convolution with one row per frame. Raises InputError if there is none.
    """
    outputs: list[Tensor] = []
    count, frames = clips.shape[:2]

    def note(key: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and len(output) == count * frames:
            outputs.append(output.detach().flatten(1))

    heads = [("", one) for one in subject.tower.structure.modules if isinstance(one, (nn.Linear, nn.Conv1d, nn.Conv2d))]
    with hooked(heads, note):
        logits = subject.logits(clips)
    within = ALIKE * logits.abs().max()
    found = [one.unflatten(0, (count, frames)) for one in outputs if one.shape[1] == logits.shape[1]]
    exact = next((one for one in reversed(found) if (one.mean(1) - logits).abs().max() <= within), None)
    if exact is None:
        raise InputError(f"{subject.head.detector}: its decision is not the mean of its frames' logits; see `time`")
    return exact
