"""Models as they stand in people's code: hooks, wrappers, squeezed logits, norms of the batch, forks."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.helpers.detectors import images, spread, tiny_detector
from utils.gradcam import InputError, explain, log_gradcam
from utils.gradcam_kit.engine.layers import LayerError

LAST = "encoder.layers.3"

# ---------------------------------------------------------------------------------------------- hooks on all of it


def halved(module: nn.Module, inputs: Any, keywords: dict[str, Any]) -> Any:
    return ({"image": inputs[0]["image"] / 2}, *inputs[1:]), keywords


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "before, with keywords": lambda model: model.register_forward_pre_hook(halved, with_kwargs=True),
    "behind, another output": lambda model: model.register_forward_hook(
        lambda module, inputs, output: {**output, "cls": output["cls"].flip(1)}
    ),
    "before, in place": lambda model: model.register_forward_pre_hook(
        lambda module, inputs: ({"image": inputs[0]["image"].clone().clamp_(-1, 1)},)
    ),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_on_the_detector_run(hook: str) -> None:
    model, x = tiny_detector(), images(3)
    plain = model.explain({"image": x}, layers=[LAST], target="fake")
    handle = HOOKS[hook](model)
    with torch.no_grad():
        wanted = model({"image": x})["cls"]
    found = model.explain({"image": x}, layers=[LAST], target="fake")
    handle.remove()
    assert torch.equal(found.logits, wanted) and not torch.equal(found.logits, plain.logits)
    assert not torch.equal(found.layers[LAST].raw, plain.layers[LAST].raw)


def test_a_parametrised_detector_is_as_it_is_called() -> None:
    model, x = tiny_detector(), images(2)
    spectral_norm(model.head)
    model.eval()
    with torch.no_grad():
        wanted = model({"image": x})["cls"]
    assert torch.equal(model.explain({"image": x}, layers=[LAST]).logits, wanted)


# ------------------------------------------------------------------------------------------------------- wrappers


class Holder(nn.Module):
    """As a LightningModule holds a detector."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.net, self.loss = nn.Sequential(detector), nn.CrossEntropyLoss()

    def training_step(self, batch: Any) -> Tensor:
        return self.loss(self.net[0](batch)["cls"], batch["label"])


class Writer:
    def __init__(self) -> None:
        self.tags: list[str] = []

    def add_image(self, tag: str, image: Tensor, step: int) -> None:
        self.tags.append(tag)


WRAPPED: dict[str, Callable[[nn.Module], Any]] = {
    "averaged": AveragedModel,
    "an EMA of DataParallel": lambda m: AveragedModel(nn.DataParallel(m), multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    "compiled EMA": lambda m: torch.compile(AveragedModel(m)),
    "a holder": Holder,
    "a compiled holder": lambda m: torch.compile(Holder(m)),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_the_detector_inside_is_logged(wrapper: str) -> None:
    writer = Writer()
    log_gradcam(writer, WRAPPED[wrapper](tiny_detector()), {"image": images(2)}, 0, layers=[LAST])
    assert writer.tags == [f"gradcam/{LAST}"]


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        (nn.ModuleDict({"online": tiny_detector(), "ema": tiny_detector(1)}), {}, r"holds 2 detectors \(online, ema\)"),
        (nn.Linear(2, 2), {}, "holds no detector with heatmaps"),
        (SimpleNamespace(), {}, "model is SimpleNamespace"),
        (tiny_detector(), {"every": 0}, "every is 0: give a whole number of epochs, at least 1"),
        (tiny_detector(), {"every": -2}, "every is -2"),
        (tiny_detector(), {"every": 2.5}, "every is 2.5"),
        (tiny_detector(), {"every": None}, "every is None"),
    ],
)
def test_what_cannot_be_logged_is_one_line(model: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        log_gradcam(Writer(), model, {"image": images(2)}, 0, **options)


def test_a_logger_is_no_writer() -> None:
    with pytest.raises(InputError, match="writer is SimpleNamespace: give a SummaryWriter"):
        log_gradcam(SimpleNamespace(experiment=Writer()), tiny_detector(), {"image": images(2)}, 0)


def test_an_averaged_model_of_any_kind_is_explained() -> None:
    model = small_cnn(nn.Flatten(), nn.Linear(8, 2))
    x = images(2, pixels=24)
    assert torch.equal(explain(AveragedModel(model), x, "1").maps["1"].raw, explain(model, x, "1").maps["1"].raw)


# ------------------------------------------------------------------------------------------------ axes of the logits


def small_cnn(*head: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), *head).eval()


class Ending(nn.Module):
    def __init__(self, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.end = end

    def forward(self, z: Tensor) -> Any:
        return self.end(z)


SQUEEZED: dict[str, Callable[[Tensor], Any]] = {
    "squeezed": lambda z: z.squeeze(),
    "squeezed, in a mapping": lambda z: {"cls": z.squeeze()},
    "as .logits": lambda z: SimpleNamespace(logits=z.squeeze()),
    "maps of one place": lambda z: z[:, :, None, None],
    "an axis in the middle": lambda z: z.unsqueeze(1),
    "an axis in front": lambda z: z.unsqueeze(0),
}


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("end", SQUEEZED)
def test_the_axes_of_logits_are_clear(end: str, classes: int, count: int) -> None:
    plain = small_cnn(nn.Flatten(), nn.Linear(8, classes))
    model = nn.Sequential(*plain, Ending(SQUEEZED[end])).eval()
    x = images(count, pixels=24)
    found, wanted = explain(model, x, "1", target="margin"), explain(plain, x, "1", target="margin")
    assert torch.equal(found.logits, wanted.logits) and torch.equal(found.maps["1"].raw, wanted.maps["1"].raw)


@pytest.mark.parametrize("end", [lambda z: z.mean(dim=0), lambda z: z.flatten(), lambda z: torch.stack([z, z], dim=1)])
def test_other_axes_are_refused(end: Callable[[Tensor], Any]) -> None:
    model = nn.Sequential(*small_cnn(nn.Flatten(), nn.Linear(8, 3)), Ending(end)).eval()
    with pytest.raises(InputError, match="returned logits of shape"):
        explain(model, images(4, pixels=24), "1")


# ------------------------------------------------------------------------------------- images that see each other


class Centred(nn.Module):
    """Less the mean of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0)


class OfTheBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, training=True)


class AcrossImages(nn.Module):
    """Attention between the images of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        flat = F.normalize(x.flatten(1))
        return x + ((flat @ flat.T).softmax(dim=1) @ flat).view_as(x) * 9


class Weighed(nn.Module):
    """Each image counts by its share of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean(dim=(1, 2, 3)).softmax(dim=0)[:, None, None, None]


class Rolled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.roll(1, 0)


class Picked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - 0.1 * x[torch.arange(len(x) - 1, -1, -1)]


MIXING: dict[str, Callable[[], nn.Module]] = {
    "shares": Weighed,
    "rolled": Rolled,
    "picked": Picked,
    "no running statistics": lambda: nn.BatchNorm2d(8, track_running_stats=False),
    "functional": OfTheBatch,
    "centred": Centred,
    "attention": AcrossImages,
}


@pytest.mark.parametrize("first", ["a batch", "one image", "its layer is found"])
@pytest.mark.parametrize("mixing", MIXING)
def test_a_map_of_all_images_is_said_once(mixing: str, first: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        MIXING[mixing](),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    ).eval()
    layer = "2" if first == "a batch" else None  # none named: a pass of one image looks for it
    if first == "one image":
        explain(model, images(1, pixels=24), "2")
    with pytest.warns(UserWarning, match="different scores in different batches"):
        explain(model, images(3, pixels=24), layer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain(model, images(3, pixels=24), "2")
        explain(tiny_detector(), {"image": images(3)}, LAST)


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(8), nn.GroupNorm(2, 8), nn.BatchNorm2d(8), nn.Softmax(dim=1)])
def test_what_keeps_images_apart_is_not_spoken_of(norm: nn.Module) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    ).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain(model, images(3, pixels=24))


def test_an_image_alone_is_not_spoken_of() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), Centred(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain(model.eval(), images(1, pixels=24), "2")


# ------------------------------------------------------------------------------------------------------------ rollout


@pytest.mark.parametrize("backward", ["plain", "balanced", "both"])
@pytest.mark.parametrize("target", ["fake", "both"])
@pytest.mark.parametrize("layers", [[LAST], ["encoder.layers.0", LAST, "fused"]])
def test_rollout_is_the_same_by_every_backward_rule(backward: str, target: str, layers: list[str]) -> None:
    model = tiny_detector()
    wanted = model.explain({"image": images(2)}, layers=layers, method="rollout", target="fake")
    found = model.explain({"image": images(2)}, layers=layers, method="rollout", target=target, backward=backward)
    for name, maps in found.layers.items():
        assert torch.equal(maps.raw, wanted.layers[name.removesuffix("_fake").removesuffix("_real")].raw)


def merged(keep: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        return (keep(output[0]), *output[1:]) if isinstance(output, tuple) else keep(output)

    return hook


CHANGED: dict[str, Callable[[Tensor], Tensor]] = {
    "dropped": lambda x: x[:, :13],
    "merged": lambda x: torch.cat([x[:, :1], (x[:, 1::2] + x[:, 2::2]) / 2], dim=1),
    "added": lambda x: torch.cat([x, x[:, -3:]], dim=1),
    "views as images": lambda x: torch.cat([x, x.flip(1)]),
    "halves as images": lambda x: torch.cat([x[:, :9], x[:, 8:]]),
}


@pytest.mark.parametrize("change", CHANGED)
@pytest.mark.parametrize("method", ["gradcam", "legrad", "rollout", "attngrad", "gradeclip"])
def test_tokens_that_no_longer_lie_on_the_image_are_refused_by_all_methods(change: str, method: str) -> None:
    model = tiny_detector()
    model.backbone.encoder.layers[1].register_forward_hook(merged(CHANGED[change]))
    if "images" in change:
        model.backbone.encoder.layers[3].register_forward_hook(merged(lambda x: x[:2]))
    with pytest.raises(LayerError, match=r"encoder\.layers\.[23]"):
        model.explain({"image": images(2)}, layers=[LAST], method=method, target="fake")


def test_rollout_of_a_block_that_the_score_does_not_read_is_refused() -> None:
    model = tiny_detector()
    with torch.no_grad():
        image = {"image": images(2)}
        model(image)
    early: dict[str, Any] = {}
    model.backbone.encoder.layers[1].register_forward_hook(lambda m, i, output: early.update(x=output))
    model.backbone.encoder.layers[3].register_forward_hook(lambda m, i, output: early["x"])
    for method in ("gradcam", "rollout"):
        with pytest.raises(LayerError, match="does not depend on layer"):
            model.explain(image, layers=[LAST], method=method)


# -------------------------------------------------------------------------------------------------------------- forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("work", ["explain", "rollout", "choose", "train"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_forked_while_a_thread_explains_explains(work: str) -> None:
    """And its model is not left frozen, in evaluation mode, or without gradient checkpointing."""
    torch.set_num_threads(1)
    model = spread(tiny_detector()).train()
    stop = threading.Event()

    def explained() -> Any:
        return model.explain({"image": images(2)}, layers=[LAST], method="rollout" if work == "rollout" else "hirescam")

    explained()
    thread = threading.Thread(target=lambda: [explained() for _ in iter(stop.is_set, True)])
    thread.start()
    codes = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            good = model.training and all(one.requires_grad for one in model.parameters())
            if work == "train":
                model({"image": images(2)})["cls"].sum().backward()
                good = good and model.head.weight.grad is not None
            elif work == "choose":
                model.calibrate_gradcam({"image": images(4)})
            else:
                explained()
            os._exit(0 if good else 1)
        codes.append(os.waitpid(child, 0)[1])
    stop.set()
    thread.join()
    assert codes == [0] * 4
