"""Every method once more, in float64 and from its paper's formula, for one image: nothing here uses the library."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

TokenReference = Callable[[np.ndarray, np.ndarray], np.ndarray]  # A and G (C, h, w) → signed map (h, w)
Block = dict[str, np.ndarray]  # "q", "k", "v" and "output_gradient", (T, heads · d) each
# The blocks up to the explained one, number of heads → signed and raw maps (T,).
AttentionReference = Callable[[list[Block], int], tuple[np.ndarray, np.ndarray]]


def grad_cam(A: np.ndarray, G: np.ndarray) -> np.ndarray:
    total = np.zeros(A.shape[1:])
    for a, g in zip(A, G, strict=True):
        total += g.mean() * a
    return total


def grad_cam_pp(A: np.ndarray, G: np.ndarray, epsilon: float = 0.1) -> np.ndarray:
    total = np.zeros(A.shape[1:])
    floor = epsilon * (G**2).max()
    for a, g in zip(A, G, strict=True):
        weight = 0.0
        for value in g.flat:
            denominator = 2 * value**2 + value**3 * a.sum() + floor
            alpha = value**2 / denominator if denominator > 0 else 0.0
            weight += alpha * max(value, 0.0)
        total += weight * a
    return total


def grad_cam_pp_of_the_paper(A: np.ndarray, G: np.ndarray) -> np.ndarray:
    return grad_cam_pp(A, G, epsilon=0.0)


def hires_cam(A: np.ndarray, G: np.ndarray) -> np.ndarray:
    total = np.zeros(A.shape[1:])
    for a, g in zip(A, G, strict=True):
        total += g * a
    return total


def layer_cam(A: np.ndarray, G: np.ndarray) -> np.ndarray:
    total = np.zeros(A.shape[1:])
    for a, g in zip(A, G, strict=True):
        total += np.maximum(g, 0) * a
    return total


def x_grad_cam(A: np.ndarray, G: np.ndarray) -> np.ndarray:
    total = np.zeros(A.shape[1:])
    for a, g in zip(A, G, strict=True):
        if a.any():  # a channel that a ReLU has left nothing of adds nothing
            total += (g * a).sum() / a.sum() * a
    return total


def heads_of(tokens: np.ndarray, heads: int) -> list[np.ndarray]:
    return np.split(tokens, heads, axis=1)


def legrad(blocks: list[Block], heads: int) -> tuple[np.ndarray, np.ndarray]:
    signed, raw, count = 0.0, 0.0, 0
    block = blocks[-1]
    for V, G in zip(heads_of(block["v"], heads), heads_of(block["output_gradient"], heads), strict=True):
        for g in G:  # the query's
            gradient = V @ g  # one value per key
            signed, raw, count = signed + gradient, raw + np.maximum(gradient, 0), count + 1
    return np.asarray(signed) / count, np.asarray(raw) / count


def rollout(blocks: list[Block], heads: int) -> tuple[np.ndarray, np.ndarray]:
    count = len(blocks[0]["q"])
    joint = np.eye(count)
    for block in blocks:
        mean = np.zeros((count, count))
        for Q, K in zip(heads_of(block["q"], heads), heads_of(block["k"], heads), strict=True):
            weights = np.exp(Q @ K.T / np.sqrt(Q.shape[1]))
            mean += weights / weights.sum(axis=1, keepdims=True) / heads
        joint = (mean + np.eye(count)) / 2 @ joint
    return joint[0], joint[0]


def grad_eclip(blocks: list[Block], heads: int) -> tuple[np.ndarray, np.ndarray]:
    block = blocks[-1]
    query, w = block["q"][0], block["output_gradient"][0]
    cosines = [key @ query / np.linalg.norm(key) / np.linalg.norm(query) for key in block["k"]]
    low, high = min(cosines[1:]), max(cosines[1:])
    signed = np.array(
        [(cosine - low) / (high - low) * (value @ w) for cosine, value in zip(cosines, block["v"], strict=True)]
    )
    return signed, np.maximum(signed, 0)


def attention_gradient(blocks: list[Block], heads: int) -> tuple[np.ndarray, np.ndarray]:
    signed = np.zeros(len(blocks[0]["q"]))
    parts = [heads_of(blocks[-1][name], heads) for name in ("q", "k", "v", "output_gradient")]
    for Q, K, V, G in zip(*parts, strict=True):
        weights = np.exp(K @ Q[0] / np.sqrt(Q.shape[1]))
        signed += weights / weights.sum() * (V @ G[0]) / heads
    return signed, np.maximum(signed, 0)


TOKEN_REFERENCES: dict[str, TokenReference] = {
    "gradcam": grad_cam,
    "gradcam++": grad_cam_pp,
    "hirescam": hires_cam,
    "layercam": layer_cam,
    "xgradcam": x_grad_cam,
}
ATTENTION_REFERENCES: dict[str, AttentionReference] = {
    "legrad": legrad,
    "gradeclip": grad_eclip,
    "attngrad": attention_gradient,
    "rollout": rollout,
}
