"""How often an explanation would wait for a device: counted on the CPU, where every such read goes the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import test_with_gradcam
from tests.helpers.datasets import DataTree
from tests.helpers.detectors import images, tiny_detector
from utils.gradcam_kit.data.frames import Batch, frame_loader
from utils.gradcam_kit.engine.checks import FromDevice
from utils.gradcam_kit.measure.counterparts import RealCounterparts, RealFrames
from utils.gradcam_kit.model.detector import LoadedDetector
from utils.gradcam_kit.run import evaluation
from utils.gradcam_kit.run.evaluation import run
from utils.gradcam_kit.run.explainer import Explainer

READS = {Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy,
         Tensor.nonzero, torch.nonzero}  # fmt: skip


class Waits(TorchFunctionMode):
    """Counts reads of tensors that a device would hold: not of what has been copied from it, nor of what follows.

    A copy that does not wait, by `Tensor.to`, counts where it is read (`FromDevice.read`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.copied: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        on_host = any(one is copied for one in args for copied in self.copied)
        self.count += func in READS and not on_host
        copies = func is Tensor.cpu or (func is Tensor.to and "cpu" in args[1:])
        if copies:
            result = result.clone()  # here it is the tensor itself
        if isinstance(result, Tensor) and (on_host or copies):
            self.copied.append(result)
        elif isinstance(result, (list, tuple)) and on_host:
            self.copied += [one for one in result if isinstance(one, Tensor)]
        return result

    def read(self, coming: FromDevice) -> list[Tensor]:
        self.count += 1
        return FROM_DEVICE_READ(coming)


FROM_DEVICE_READ = FromDevice.read


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    counted = Waits()
    monkeypatch.setattr(FromDevice, "read", lambda coming: counted.read(coming))
    return counted


@pytest.mark.parametrize("method", ["hirescam", "gradcam++", "legrad"])
@pytest.mark.parametrize("target", ["margin", "predicted"])
@pytest.mark.parametrize("backward", ["plain", "balanced"])
@pytest.mark.parametrize("layers", [["encoder.layers.3"], ["encoder.layers.3", "encoder.layers.1", "encoder.layers.0"]])
def test_an_explanation_waits_once(layers: list[str], backward: str, target: str, method: str, waits: Waits) -> None:
    model, image = tiny_detector(), images(3)
    asked: dict[str, Any] = {"layers": layers, "method": method, "target": target, "backward": backward}
    model.explain({"image": image}, **asked)
    waits.count = 0
    with waits:
        model.explain({"image": image}, completeness=False, **asked)
    assert waits.count == 1


@pytest.mark.parametrize("every", [True, False], ids=["every frame", "mistakes"])
def test_a_run_reads_a_batch_when_the_next_is_under_way(
    every: bool, data_tree: DataTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: Waits
) -> None:
    """Nothing is read before the next batch has been given to the device, and then one batch at a time."""
    order: list[str] = []

    def logged(name: str, method: Any) -> Any:
        def call(*given: Any, **options: Any) -> Any:
            before = waits.count
            with waits:
                result = method(*given, **options)
            assert waits.count == before, f"{name} waits"
            assert result is not None, f"{name} does nothing"
            order.append(name)
            return result

        return call

    def recorded(method: Any) -> Any:
        def call(*given: Any, **options: Any) -> Any:
            order.append("write")
            return method(*given, **options)

        return call

    def decoded(counterparts: RealCounterparts, *given: Any) -> RealFrames:
        """What is decoded has never been on a device, and may be read."""
        before, found = waits.count, of(counterparts, *given)
        waits.count = before
        waits.copied += found
        return found

    of = RealCounterparts.of
    monkeypatch.setattr(RealCounterparts, "of", decoded)

    def to_the_end(settings: Any, options: Any) -> None:
        monkeypatch.setattr(Explainer, "begin", logged("begin", Explainer.begin))
        monkeypatch.setattr(Explainer, "_write", recorded(Explainer._write))
        monkeypatch.setattr(LoadedDetector, "predict", logged("predict", LoadedDetector.predict))
        run(settings._replace(batch_size=4), options)

    flags = ["--save_all_predictions"] if every else []
    monkeypatch.setattr(evaluation, "run", to_the_end)
    test_with_gradcam.main(data_tree.arguments("--gradcam_enabled", *flags, "--gradcam_output_dir", tmp_path / "out"))
    batches = order.count("begin")
    assert batches > 2
    explained = [one for one in order if one != "predict"]
    assert explained == ["begin", *["begin", "write"] * (batches - 1), "write"]
    assert ("predict" in order) is not every


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
