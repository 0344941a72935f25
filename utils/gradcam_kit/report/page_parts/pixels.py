"""The images of the page once more as text, in scripts: a page from the file system may show a file, not read it.

`<dataset>/page_data/<n>.js` holds a hundred samples, and is loaded only when one of them is saved as a PNG.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ...base.errors import InputError
from ...base.files import new_folder, write_whole
from ...data.images import UnreadableImage, read_file
from ...drawing.overlays import encode
from ...store.grey_maps import GREY_MAPS, grey_name, signed_name
from ...store.read_run import RunOnDisk
from ...store.sample import Sample
from ..paper_figure import original

FOLDER = "page_data"
PER_FILE = 100


def write_pixels(run: RunOnDisk) -> None:
    """Write `page_data` of every dataset, anew."""
    for data in run.datasets:
        if data.samples:
            new_folder(data.folder / FOLDER)
        for number, start in enumerate(range(0, len(data.samples), PER_FILE)):
            _write_file(data.folder / FOLDER / f"{number}.js", data.samples[start : start + PER_FILE])


def _write_file(path: Path, samples: Sequence[Sample]) -> None:
    with ThreadPoolExecutor() as pool:
        found = dict(zip((f"{one.dataset}/{one.index}" for one in samples), pool.map(_pixels, samples), strict=True))
    kept = {name: values for name, values in found.items() if values}
    write_whole(path, f"keepPixels({json.dumps(kept)});\n".encode())


def _pixels(sample: Sample) -> dict[str, Any]:
    """The image as the detector saw it, and both grey maps of every layer, as data URIs; empty where they are lost."""
    try:
        image = original(sample)
        grey = sample.folder / GREY_MAPS
        maps = [
            [data_uri(read_file(str(grey / name(layer.name))), "png") for name in (grey_name, signed_name)]
            for layer in sample.layers
        ]
    except (InputError, UnreadableImage):
        return {}
    return {"image": data_uri(encode(image, "webp"), "webp"), "maps": maps}


def data_uri(data: bytes, kind: str) -> str:
    """An image file as an address."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
