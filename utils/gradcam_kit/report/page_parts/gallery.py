"""The page's samples: the data for its script, and their images as text.

A page from the file system may show a file but not read it. So `<dataset>/page_data/<n>.js` holds the images of a
hundred samples; it is loaded only to save one as a PNG.
"""

from __future__ import annotations

import base64
import itertools
import json
import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ...base.files import new_folder, sha256_of, write_whole
from ...data.images import UnreadableImage
from ...data.masks import read_mask
from ...drawing.clips import mosaic_shape
from ...drawing.overlays import encode
from ...store.read_run import DatasetOnDisk, RunOnDisk, frame_rows, original, stored_maps
from ...store.sample import LayerFacts, Sample
from ...store.sample_folder import grey, png, signed_grey
from .facts import MIXED, PIXELS, some_sample

PER_FILE = 100  # samples in a script of images
OUTLINE = 256  # pixels per side at which a mask is outlined
CORNER = 0.8  # maximum distance in pixels from an outline to the mask's edge


def page_data(run: RunOnDisk, anonymous: bool = False) -> dict[str, Any]:
    """What the page's script works on; without paths and hashes of the samples' files where others are to see it."""
    first = some_sample(run)  # where the JSON is lost there is none
    layers = run.layers
    return {
        "layers": layers,
        "run": {key: getattr(first, key) if first else "–" for key in ("method", "site", "backward", "weights")},
        "samples": [
            {**sample_data(sample, layers, anonymous), "real": real, "pixels": place // PER_FILE}
            for data in run.datasets
            for place, (sample, real) in enumerate(zip(data.samples, paired_reals(data, anonymous), strict=True))
        ],
        "videos": [scores_of_videos(data) for data in run.datasets],
        "order": "found" if run.manifest.options.get("select") == MIXED else "mistakes",
        "anonymous": anonymous,
        "raw": bool(run.manifest.options.get("save_raw")),
    }


def shared_path(forgery: str, video: str, path: str) -> str:
    """What others may see of a frame's path: nothing of the folders that it lies in here."""
    return f"{forgery}/{video}/{posixpath.basename(path)}"


def scores_of_videos(data: DatasetOnDisk) -> dict[str, Any]:
    """The videos with an explained sample: forgery, video, and number and fake probability of each of its frames."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {(one.forgery, one.video): [] for one in data.samples}
    for row in frame_rows(data.folder) if found else ():
        frames = found.get((row["forgery"], row["video"]))
        if frames is not None:
            frames.append((row["index"], round(row["prob_fake"], 4)))
    videos = [[*video, frames] for video, frames in found.items() if len(frames) > 1]
    return {"dataset": data.name, "videos": videos}


def paired_reals(data: DatasetOnDisk, anonymous: bool) -> Iterator[str]:
    """Yield for each sample the path of its original real frame; "" for a real, or if there is none.

    It is the frame of the same name in the real video of the same name; for `000_003`, of the first name.
    """
    places = []
    for sample in data.samples:
        names = (sample.video, sample.video.partition("_")[0]) if sample.label else ()
        places.append([(video, posixpath.basename(sample.path)) for video in names])
    reals = dict.fromkeys(itertools.chain.from_iterable(places), "")
    for row in frame_rows(data.folder) if reals else ():  # not all as a mapping: there may be millions
        place = row["video"], posixpath.basename(row["path"])
        if row["label"] == 0 and place in reals:
            path = row["path"]
            reals[place] = shared_path(row["forgery"], row["video"], path) if anonymous else path
    for of_sample in places:
        yield next(filter(None, map(reals.get, of_sample)), "")


def sample_data(sample: Sample, layers: Sequence[str], anonymous: bool = False) -> dict[str, Any]:
    """Return one card. `folder`: parts of the path from the page to the sample's files."""
    box = sample.original
    path = shared_path(sample.forgery, sample.video, sample.path) if anonymous else sample.path
    return {
        "number": sample.index, "dataset": sample.dataset, "forgery": sample.forgery, "video": sample.video,
        "path": path, "label": sample.label, "predicted": sample.predicted, "outcome": sample.outcome,
        "confidence": round(sample.confidence, 6), "fake": round(sample.prob_fake, 6),
        "logits": list(sample.logits), "target": sample.target or "–",
        "evidence": sample.evidence,
        "folder": [sample.folder.parent.name, sample.folder.name],
        "comparison": sample.comparison, "box": list(astuple(box)) if box else [],
        "maps": [_map_data(one, layers) for one in sample.layers], "lost": sample.lost,
        **({} if anonymous else file_facts(Path(sample.path))), **mask_outline(sample), **clip_data(sample),
    }  # fmt: skip


def clip_data(sample: Sample) -> dict[str, Any]:
    """Return a clip's frame numbers, the rows and columns of its mosaics, and what replacing a frame costs."""
    if not sample.frames:
        return {}
    cost = {"cost": [rounded(value) for value in sample.cost]} if sample.cost else {}
    return {"frames": list(sample.frames), "mosaic": mosaic_shape(len(sample.frames)), **cost}


def _map_data(layer: LayerFacts, layers: Sequence[str]) -> list[object]:
    verdict, why = (layer.check.word, layer.check.sentence) if layer.check else ("", "")
    time = [[rounded(value) for value in layer.time]] if layer.time else []
    return [layers.index(layer.name), rounded(layer.raw_maximum), layer.empty, layer.drawn_empty, verdict, why, *time]


def rounded(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")


def file_facts(path: Path) -> dict[str, Any]:
    """Return the image's present size in bytes and SHA-256; nothing if it is not a file."""
    try:
        return {"bytes": path.stat().st_size, "sha256": sha256_of(path)} if path.is_file() else {}
    except (OSError, ValueError):  # no permission, or an invalid name
        return {}


def mask_outline(sample: Sample) -> dict[str, str]:
    """Return `outline`, the forged region's edge as an SVG path in a square of 100; nothing without a mask."""
    try:
        mask = read_mask(sample.path, OUTLINE) if sample.label and not sample.frames else None
    except (UnreadableImage, OSError, ValueError):
        return {}
    if mask is None or not mask.any():
        return {}
    edges, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    shapes = [(cv2.approxPolyDP(edge, CORNER, True)[:, 0] + 0.5) * 100 / OUTLINE for edge in edges]
    return {"outline": "".join(svg_path(points, True) for points in shapes if len(points) > 2)}


def svg_path(points: np.ndarray, closed: bool) -> str:
    """Join points (N, 2) by lines, as an SVG path."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + ("Z" if closed else "")


def write_pixels(run: RunOnDisk, folder: Path) -> None:
    """Write `page_data` of every dataset into its folder in the page's, anew."""
    for data in run.datasets:
        if data.samples:
            new_folder(folder / data.name / PIXELS)
        for number, start in enumerate(range(0, len(data.samples), PER_FILE)):
            samples = data.samples[start : start + PER_FILE]
            with ThreadPoolExecutor() as pool:
                found = list(zip(samples, pool.map(_pixels, samples), strict=True))
            kept = {f"{one.dataset}/{one.index}": values for one, values in found if values}
            write_whole(folder / data.name / PIXELS / f"{number}.js", f"keepPixels({json.dumps(kept)});\n".encode())


def _pixels(sample: Sample) -> dict[str, Any]:
    """Return the detector's input image and both grey maps of every layer as data URIs; empty if lost."""
    try:
        image = original(sample)
    except UnreadableImage:
        return {}
    stored = stored_maps(sample)
    maps = [
        [data_uri(png(one), "png") for one in (grey(found.raw, layer.empty), signed_grey(found.signed))]
        for layer in sample.layers
        for found in [stored[layer.name]]
    ]
    return {"image": data_uri(encode(image, "webp"), "webp"), "maps": maps}


def data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
