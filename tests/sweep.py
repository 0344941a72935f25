"""Every architecture that timm and torchvision register, explained with random weights, each map checked by hand.

    python tests/sweep.py RESULTS.jsonl [--only NAME ...]

Run by hand, a quarter of an hour, where timm and torchvision are installed. Of each family, a module of the library
and the letters that its models' names begin with, the smallest model is built; nothing is downloaded. A line is written
for each as soon as it is known, and what has a line is not tried again. A map is checked in two ways, with hooks of
this script alone: it is Grad-CAM of the layer's activation, and what a square of the image changes in that
activation lies in the map's cells where the square lies. Exit code 1 if a map is wrong.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.gradcam import Explanation, InputError, explain

MOST_PARAMETERS, MOST_SECONDS, LONGEST = 60e6, 10.0, 120
NORMS = ("norm1", "ln_1", "layer_norm1")
LEAST_CORRELATION = 0.8
FACTORS = (-2.0, 0.8, 0.0)
UNSEEN = "place not seen"
OF_ALL = re.compile("Attention|Attn|MLA")  # classes of modules that mix the whole image


class Candidate(NamedTuple):
    """The smallest model of a family."""

    library: str
    family: str
    name: str
    parameters: int


def build(library: str, name: str) -> Any:
    """A model of two classes with random weights."""
    if library == "timm":
        return importlib.import_module("timm").create_model(name, pretrained=False, num_classes=2)
    more = {"init_weights": True, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    return importlib.import_module("torchvision.models").get_model(name, weights=None, num_classes=2, **more)


def registered() -> Iterator[tuple[str, str, str]]:
    """Library, family and name of every model."""
    timm = importlib.import_module("timm")
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            if not name.startswith("test_"):
                yield "timm", f"{module}/{letters(name)}", name
    models = importlib.import_module("torchvision.models")
    for name in models.list_models(module=models):
        yield "torchvision", f"{models.get_model_builder(name).__module__.split('.')[-1]}/{letters(name)}", name


def letters(name: str) -> str:
    """What a name begins with, before the first digit or underscore."""
    found = re.match("[a-z]+", name)
    return found[0] if found else name


def candidates() -> list[Candidate]:
    """Of each family the smallest model; of each of timm's modules its smallest comes first."""
    smallest: dict[tuple[str, str], Candidate] = {}
    for library, family, name in registered():
        try:
            with torch.device("meta"):
                count = sum(parameter.numel() for parameter in build(library, name).parameters())
        except Exception as error:  # some models compute with numbers while they are built
            print(f"{name}: not on meta: {type(error).__name__}", file=sys.stderr)
            count = int(MOST_PARAMETERS)
        kept = smallest.get((library, family))
        if kept is None or count < kept.parameters:
            smallest[library, family] = Candidate(library, family, name, count)
    seen: set[str] = set()
    first: list[Candidate] = []
    others: list[Candidate] = []
    for one in sorted(smallest.values(), key=lambda one: one.parameters):
        module = f"{one.library}/{one.family.partition('/')[0]}"
        (others if module in seen else first).append(one)
        seen.add(module)
    return first + others


def with_spread(model: nn.Module, images: Tensor) -> nn.Module:
    """Weights that are not nothing at all, statistics of these images: scores and maps that differ."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or parameter.abs().max() < 1e-3:  # many branches begin at nothing
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.eval()
        for norm in norms:
            norm.momentum = None  # the mean over batches
            norm.train()
        model(images)
    return model.eval()


class Read:
    """What a module returns, or reads, in a forward pass."""

    def __init__(self, module: nn.Module, by_input: bool = False) -> None:
        self.module, self.by_input = module, by_input

    def __call__(self, model: nn.Module, images: Tensor) -> tuple[Any, Tensor]:
        """The model's output and the module's, or what that has read, of its last run."""
        kept: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> Any:
            kept.append(output)
            return output.clone() if isinstance(output, Tensor) else None  # which may be changed in place

        if self.by_input:
            handle = self.module.register_forward_pre_hook(
                lambda module, inputs: (keep(module, None, inputs[0]), *inputs[1:])
            )
        else:
            handle = self.module.register_forward_hook(keep)
        result = model(images)
        handle.remove()
        return result, kept[-1]


def reads_of(model: nn.Module, layer: str) -> list[Read]:
    """What may be read for a layer's map: the norm that a block begins with, what the module returns, what it reads."""
    named = dict(model.named_modules())
    found = named.get(layer) or next(module for name, module in named.items() if name.endswith(f".{layer}"))
    inner = dict(found.named_children())
    return [*(Read(inner[name]) for name in NORMS if name in inner), Read(found), Read(found, by_input=True)]


def arrangements(A: Tensor, grid: tuple[int, int]) -> Iterator[tuple[str, Any]]:
    """Every way in which an activation may lie on that grid: a name, and what brings it to (B, C, h, w)."""
    places = grid[0] * grid[1]
    if A.ndim == 4 and A.shape[2:] == grid:
        yield "channels first", lambda x: x
    if A.ndim == 4 and A.shape[1:3] == grid:
        yield "channels last", lambda x: x.permute(0, 3, 1, 2)
    if A.ndim == 3:
        for before in range(A.shape[1] - places + 1):
            yield f"{before} tokens before", lambda x, n=before: x[:, n : n + places].mT.unflatten(2, grid)
        if A.shape[2] == places:
            yield "tokens last", lambda x: x.unflatten(2, grid)


def wrong(model: nn.Module, images: Tensor, found: Explanation) -> str:
    """What is wrong with a map; "" where nothing is."""
    layer, maps = next(iter(found.layers.items()))
    signed, grid = maps.signed, (maps.signed.shape[1], maps.signed.shape[2])
    if max(grid) < 2 or any(side > pixels for side, pixels in zip(grid, images.shape[2:], strict=True)):
        return f"a grid of {grid}"
    shapes = []
    for read in reads_of(model, layer):
        logits, A = read(model, images)
        if not isinstance(A, Tensor):
            continue
        shapes.append(tuple(A.shape))
        logits = logits if isinstance(logits, Tensor) else logits[0]
        G = torch.autograd.grad(logits[:, 1].sum(), A)[0]
        for name, onto in arrangements(A.detach(), grid):
            own = (onto(A.detach()) * onto(G).mean(dim=(2, 3), keepdim=True)).sum(dim=1)
            if (own - signed).abs().max() <= 1e-2 * own.abs().max():
                return misplaced(model, images, read, onto, name)
    return f"no Grad-CAM of {layer}, {shapes}, on {grid}"


def misplaced(model: nn.Module, images: Tensor, read: Read, onto: Any, name: str) -> str:
    """Whether the activation changes where the image does: "" if so, in one of three ways of changing it.

    Gates and attention over the whole image can drown what is local: then they are held constant, and the gradient of a
    cell has to lie where the cell lies. The answer says if that fails, too.
    """
    tables = [table_of(model, images[:1], read, onto, factor) for factor in FACTORS]
    if any(bool(table.diagonal().gt(LEAST_CORRELATION).all()) for table in tables):
        return ""
    elsewhere = [(table - table.diagonal().clamp_min(0).diag()).abs().max() for table in tables]
    if min(elsewhere) > LEAST_CORRELATION:
        return f"{name}: changes show where the image has not changed: {tables[0].tolist()}"
    return "" if follows(model, images[:1], read, onto) else UNSEEN


def follows(model: nn.Module, image: Tensor, read: Read, onto: Any) -> bool:
    """Whether the gradient of a cell lies where the cell lies, with what is of the whole image held constant.

    That is what attention returns, and modules with one number for each channel.
    """

    def held(module: nn.Module, inputs: Any, output: Any) -> Any:
        whole = isinstance(output, Tensor) and (OF_ALL.search(type(module).__name__) or output.shape[2:] == (1, 1))
        return output.detach() if whole else None

    handles = [module.register_forward_hook(held) for module in model.modules() if module is not read.module]
    pixels = image.clone().requires_grad_()
    activation = onto(read(model, pixels)[1])
    for handle in handles:
        handle.remove()
    rows, columns = activation.shape[2] - 1, activation.shape[3] - 1
    places = [(0, 0), (0, columns), (rows // 2, columns // 2), (rows, 0), (rows, columns)]
    centres = []
    for row, column in places:
        cell = torch.zeros_like(activation)
        cell[0, :, row, column] = torch.randn(activation.shape[1], generator=torch.Generator().manual_seed(0))
        (found,) = torch.autograd.grad(activation, pixels, cell, retain_graph=True)
        size = found[0].abs().sum(dim=0)
        centres.append(
            [(size.sum(dim=1 - axis) * torch.arange(size.shape[axis])).sum() / size.sum() for axis in (0, 1)]
        )
    both = torch.cat([torch.tensor(centres).T.double(), torch.tensor(places).double().T])
    return bool(torch.corrcoef(both)[:2, 2:].diagonal().gt(LEAST_CORRELATION).all())


def table_of(model: nn.Module, image: Tensor, read: Read, onto: Any, factor: float) -> Tensor:
    """(2, 2): how a change's row and column in the activation correlate with its row and column in the image.

    Five squares are changed. A cell's change is its share of the change in all five, since whole networks have gates
    that change everything.
    """
    height, width = image.shape[2:]
    side = (height // 5, width // 5)
    places = [(0, 0), (0, 2), (1, 1), (2, 0), (2, 2)]
    copies = image.repeat(1 + len(places), 1, 1, 1)
    for copy, (row, column) in zip(copies[1:], places, strict=True):
        top, left = row * (height - side[0]) // 2, column * (width - side[1]) // 2
        copy[:, top : top + side[0], left : left + side[1]] *= factor
    with torch.no_grad():
        activation = onto(read(model, copies)[1]).double()
    moves = (activation[1:] - activation[:1]).norm(dim=1)
    shares = moves / moves.sum(dim=0).clamp_min(1e-30)
    centres = [
        (shares.sum(dim=3 - axis) * torch.arange(moves.shape[axis])).sum(dim=1) / shares.sum(dim=(1, 2))
        for axis in (1, 2)
    ]
    return torch.corrcoef(torch.cat([torch.stack(centres), torch.tensor(places).double().T]))[:2, 2:]


def result_of(one: Candidate) -> dict[str, Any]:
    """A line of the results."""
    line: dict[str, Any] = {**one._asdict(), "layer": "", "grid": "", "result": ""}
    torch.manual_seed(0)
    model = build(one.library, one.name)
    size = getattr(model, "default_cfg", {}).get("input_size", (3, 299 if "inception" in one.name else 224, 224))
    height, width = (299, 299) if one.name == "inception_v3" else size[1:]
    images = torch.randn(2, 3, height, width)
    start = time.monotonic()
    with_spread(model, images)
    if time.monotonic() - start > MOST_SECONDS:
        return {**line, "result": "skipped: slow"}
    try:
        found = explain(model, images, target="fake")
    except InputError as error:
        return {**line, "result": f"refused: {error}"}
    layer, maps = next(iter(found.layers.items()))
    fault = wrong(model, images, found)
    line.update(layer=layer, grid="x".join(map(str, maps.signed.shape[1:])))
    if fault == UNSEEN:
        return {**line, "result": f"explained, {UNSEEN}"}
    return {**line, "result": f"WRONG: {fault}" if fault else "explained"}


def too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"more than {LONGEST} s")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON lines; those that are there are kept")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these models alone, again")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGALRM, too_long)
    chosen = options.results.with_suffix(".candidates.json")
    if not chosen.exists():
        chosen.write_text(json.dumps(candidates()), encoding="utf-8")
    every = [Candidate(*one) for one in json.loads(chosen.read_text(encoding="utf-8"))]
    lines = options.results.read_text(encoding="utf-8").splitlines() if options.results.exists() else []
    known = {(line["library"], line["name"]): line for line in map(json.loads, lines)}
    for one in every:
        key = one.library, one.name
        if one.name not in options.only if options.only else key in known:
            continue
        if one.parameters > MOST_PARAMETERS:
            line = {**one._asdict(), "result": "skipped: large"}
        else:
            signal.alarm(LONGEST)
            try:
                line = result_of(one)
            except Exception as error:  # a traceback is a result, and the next model is tried
                line = {**one._asdict(), "result": f"WRONG: {type(error).__name__}: {error}"}
            signal.alarm(0)
        known[key] = line
        print(one.family, one.name, line["result"][:150], flush=True)
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    return int(any(line["result"].startswith("WRONG") for line in known.values()))


if __name__ == "__main__":
    sys.exit(main())
