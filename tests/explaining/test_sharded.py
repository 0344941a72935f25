"""Models whose weights lie in shards (FSDP2 and FSDP1), or that run in TorchScript."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from tests.helpers.detectors import images, tiny_detector
from tests.helpers.real_towers import FOLDER as TOWERS
from utils.gradcam import explain
from utils.gradcam_kit.base.errors import InputError

pytestmark = pytest.mark.slow  # starts processes that meet

fsdp = pytest.importorskip("torch.distributed.fsdp")
if not hasattr(fsdp, "fully_shard"):
    pytest.skip("needs fully_shard", allow_module_level=True)

LAYERS = ["encoder.layers.1", "encoder.layers.3"]


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        detector = tiny_detector(1)
        self.tower, self.head = detector.backbone, detector.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tower(x)["pooler_output"])


def blocks_and_root(model: Plain, **how: bool) -> nn.Module:
    for block in model.tower.encoder.layers:
        fsdp.fully_shard(block, **how)
    fsdp.fully_shard(model, **how)
    return model


def compiled(model: Plain) -> nn.Module:
    found: nn.Module = torch.compile(blocks_and_root(model), backend="eager")  # type: ignore[assignment]  # a module
    return found


SHARDED: dict[str, Callable[[Plain], nn.Module]] = {
    "blocks and root": blocks_and_root,
    "kept after the pass": lambda model: blocks_and_root(model, reshard_after_forward=False),
    "root": lambda model: fsdp.fully_shard(model),
    "tower": lambda model: (fsdp.fully_shard(model.tower), model)[1],
    "compiled": compiled,
    "FSDP1": lambda model: fsdp.FullyShardedDataParallel(model, device_id=torch.device("cpu")),
    "FSDP1, own parameters": lambda model: fsdp.FullyShardedDataParallel(
        model, use_orig_params=True, device_id=torch.device("cpu")
    ),
}


def compare(rank: int, world: int, folder: str) -> None:
    """Maps, logits and a step of training of each sharded model against the plain one."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    x, plain = images(2), Plain()
    wanted = {method: explain(plain, x, LAYERS, method, target="fake").layers for method in ("gradcam", "legrad")}
    for name, shard in SHARDED.items():
        model = shard(copy.deepcopy(plain))
        for method in wanted:
            found = explain(model, x, LAYERS, method, target="fake")
            for layer in LAYERS:
                torch.testing.assert_close(found.layers[layer].raw, wanted[method][layer].raw, msg=f"{name} {method}")
        model(x).sum().backward()
        torch.testing.assert_close(explain(model, x, LAYERS, target="fake").logits, plain(x).detach())
        if name.startswith("FSDP1"):
            model(x)  # no backward pass follows
            with pytest.raises(InputError, match=r"waits for its backward\(\)"):
                explain(model, x, LAYERS)
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [1, 2])
def test_a_sharded_model_has_the_plain_models_maps(world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A process inherits the folder of other libraries, but not the operators that its torchvision needs.
    monkeypatch.setattr("sys.path", [path for path in sys.path if path != str(TOWERS)])
    mp.spawn(compare, args=(world, str(tmp_path)), nprocs=world)


# -------------------------------------------------------------------------------------------------------- TorchScript


def traced(model: nn.Module) -> nn.Module:
    found: nn.Module = torch.jit.trace(model.eval(), images(1), check_trace=False, strict=False)
    return found


class Inside(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x)
        return found


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


SCRIPTED: dict[str, Callable[[], nn.Module]] = {
    "a traced transformer": lambda: traced(Plain()),
    "a traced network": lambda: traced(network()),
    "a scripted network": lambda: torch.jit.script(network()),
    "inside another": lambda: Inside(torch.jit.script(network())),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(network().eval())),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SCRIPTED)
def test_torchscript_is_named(name: str) -> None:
    with pytest.raises(InputError, match="is TorchScript, whose layers cannot be read"):
        explain(SCRIPTED[name](), images(2))
