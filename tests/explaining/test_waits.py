"""How often an explanation would wait for a device: counted on the CPU, where every such read goes the same way."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.helpers.detectors import images, tiny_detector
from utils.data.frames import Batch, frame_loader

READS = {Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy,
         Tensor.nonzero, torch.nonzero}  # fmt: skip
# The batch's range; whether the class token's path holds; the checks of all maps; whether the logits are finite.
WAITS = 4


class Waits(TorchFunctionMode):
    """Counts reads of tensors that a device would hold: not of what has been copied from it, nor of what follows."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._copied: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        on_host = any(one is copied for one in args for copied in self._copied)
        self.count += func in READS and not on_host
        if func is Tensor.cpu:
            result = result.clone()  # here it is the tensor itself
        if isinstance(result, Tensor) and (on_host or func is Tensor.cpu):
            self._copied.append(result)
        elif isinstance(result, (list, tuple)) and on_host:
            self._copied += [one for one in result if isinstance(one, Tensor)]
        return result


@pytest.mark.parametrize("backward", ["plain", "balanced"])
@pytest.mark.parametrize("layers", [["encoder.layers.3"], ["encoder.layers.3", "encoder.layers.1", "encoder.layers.0"]])
def test_waits_are_few_and_the_same_for_any_number_of_layers(layers: list[str], backward: str) -> None:
    model, image = tiny_detector(), images(3)
    model.explain({"image": image}, layers=layers, backward=backward)
    with Waits() as waits:
        model.explain(
            {"image": image}, layers=layers, method="hirescam", target="margin", backward=backward, completeness=False
        )
    assert waits.count == WAITS


def test_the_count_sees_a_read() -> None:
    with Waits() as waits:
        values = torch.ones(3)
        bool(values.any())
        copy = values.cpu()
        assert copy.tolist() == [1.0, 1.0, 1.0] and bool(copy[0])
        float(values[0])
    assert waits.count == 3


def test_batches_come_in_pinned_memory_where_the_run_is_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    batch = Batch([], torch.zeros(0, 3, 4, 4, dtype=torch.uint8), [])
    assert batch.pin_memory() == batch and pinned[0] is batch.pixels
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda there=there: there)
        assert frame_loader([], 4, 2, 0).pin_memory is there
