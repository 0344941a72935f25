"""Thousands of made-up inputs for everything that reads from outside: a typed value or a documented error comes out.

The same cases each time (`derandomize`), so that a failure here is one everywhere.
"""

from __future__ import annotations

import faulthandler
import io
import json
import os
import resource
import signal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from tests.fuzz.harness import CASES, SECONDS, Outcome, fuzzed, mutate, mutated
from tests.helpers.datasets import data_settings
from tests.helpers.detectors import tiny_config
from tests.helpers.weights import load_weights
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.data.frame import Frame
from utils.gradcam_kit.data.frame_paths import read_bytes
from utils.gradcam_kit.data.images import UnreadableImage, decode_image
from utils.gradcam_kit.data.masks import read_landmarks
from utils.gradcam_kit.data.readers import read_dataset
from utils.gradcam_kit.media.video_files import UnreadableVideo, VideoReader, video_writer
from utils.gradcam_kit.model.checkpoints import read_weights
from utils.gradcam_kit.settings.config import detector_settings, run_settings

pytestmark = pytest.mark.slow  # thousands of inputs

names = st.text(st.characters(), max_size=12)  # all of Unicode, half surrogate pairs and NUL too
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**400), 10**400), st.floats(), names
)  # fmt: skip
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=5
)


# -------------------------------------------------------------------------------------------------------- dataset JSON

LABELS = {"Celeb_Real": 0, "Celeb_Fake": 1}
paths = st.one_of(
    names, st.sampled_from(["a/0.png", "..\\..\\x\\1.png", "/etc/passwd", "C:\\d\\2.png", "a\0.png", "~", "."])
)
videos = st.dictionaries(
    names,
    st.fixed_dictionaries({"label": st.sampled_from(sorted(LABELS)), "frames": st.lists(paths.filter(bool), max_size=5)}),
    min_size=1, max_size=4,
)  # fmt: skip
well_formed = st.dictionaries(names, st.fixed_dictionaries({"test": videos}), min_size=1, max_size=3)


@st.composite
def dataset_content(draw: st.DrawFn) -> Any:
    """A dataset JSON, in two cases of three with anything at all in one place of it."""
    content: Any = {"Celeb": draw(well_formed)}
    if draw(st.integers(0, 2)) == 0:
        return content
    node = content
    for _ in range(draw(st.integers(0, 4))):
        inner = [key for key in node if isinstance(node[key], dict) and node[key]]
        if not inner:
            break
        node = node[draw(st.sampled_from(inner))]
    node[draw(st.sampled_from([*node, "test", "train"]))] = draw(anything)
    return content


@given(content=dataset_content(), frame_num=st.none() | st.integers(1, 5), sampling=st.sampled_from(["even", "host"]))
@fuzzed(CASES // 2)
def test_dataset_json_by_shape(
    outcome: Outcome, scratch: Path, content: Any, frame_num: int | None, sampling: str
) -> None:
    (scratch / "Celeb.json").write_text(json.dumps(content))
    how = data_settings(scratch, label_dict=LABELS, frame_num=frame_num, sampling=sampling)
    frames = outcome.of(lambda: read_dataset("Celeb", how), InputError)
    for i, frame in enumerate(frames or []):
        assert isinstance(frame, Frame) and frame.index == i and frame.label == LABELS[frame.forgery]
        assert isinstance(frame.path, str) and frame.dataset == "Celeb"


@given(
    data=mutated(
        json.dumps(
            {"Celeb": {"a": {"test": {"v": {"label": "Celeb_Real", "frames": ["a/0.png", "a/1.png"]}}}}}
        ).encode()
    )
)
@fuzzed(CASES // 2)
def test_dataset_json_by_bytes(outcome: Outcome, scratch: Path, data: bytes) -> None:
    (scratch / "Celeb.json").write_bytes(data)
    outcome.of(lambda: read_dataset("Celeb", data_settings(scratch, label_dict=LABELS)), InputError)


# ---------------------------------------------------------------------------------------------------------------- YAML

GOOD_CONFIG: dict[str, Any] = {
    "model_name": "clip_gradcam", "test_dataset": ["toy"], "resolution": 64, "frame_num": {"test": 8}, "workers": 0,
    "test_batchSize": 5, "manualSeed": 1, "compression": "c23", "frame_sampling": "even", "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5], "label_dict": {"a": 0, "b": 1}, "gradcam_enabled": True, "gradcam_layers": ["encoder.layers.3"],
    "gradcam_method": "gradcam", "gradcam_target": "fake", "gradcam_site": "residual", "gradcam_samples": 5,
    "gradcam_pp_epsilon": 0.1, "gradcam_colormap": "jet", "backbone_config": {"architecture": {"hidden_size": 32}},
}  # fmt: skip


@given(
    changes=st.dictionaries(st.sampled_from([*GOOD_CONFIG, "weights_path", "rgb_dir"]) | names, anything, max_size=2)
)
@fuzzed(CASES // 2)
def test_config_by_value(outcome: Outcome, scratch: Path, changes: dict[str, Any]) -> None:
    config = {**GOOD_CONFIG, "dataset_json_folder": str(scratch), **changes}
    (scratch / "detector.yaml").write_text(json.dumps(config))  # YAML with every character said
    (scratch / "test.yaml").write_text("{}")
    (scratch / "toy.json").write_text("{}")
    read = outcome.of(lambda: run_settings(scratch / "detector.yaml", scratch / "test.yaml", {}), InputError)
    if read is not None:
        json.dumps(read.detector.config, allow_nan=False, default=str)  # as the manifest will
        assert read.batch_size >= 1 and read.workers >= 0 and read.detector.resolution >= 1


@given(data=mutated(yaml.safe_dump(GOOD_CONFIG).encode()))
@fuzzed(CASES // 2)
def test_config_by_bytes(outcome: Outcome, scratch: Path, data: bytes) -> None:
    (scratch / "detector.yaml").write_bytes(data)
    outcome.of(lambda: detector_settings(scratch / "detector.yaml", {}), InputError)


pieces = st.sampled_from(
    ["a: ", "b", "\n", "- ", "  ", "[", "]", "{", "}", ", ", "&x ", "*x", "<<: ", "!!int ", "!!bool ", "!!float ", "!!set ",
     "!!omap ", "!!binary ", "!!timestamp ", "!!python/name:os.system ", "? ", ": ", "|\n", ">-\n", "'", '"', "\\ud800", "0x",
     "1e999", ".inf", "1:30", "2001-02-30", "~", "#", "%TAG ! !", "---\n", "...\n", "\t", "\ufeff", "\x85"]
)  # fmt: skip


@given(text=st.lists(pieces, max_size=14).map("".join))
@fuzzed(CASES // 2)
def test_yaml_by_its_own_signs(outcome: Outcome, scratch: Path, text: str) -> None:
    (scratch / "signs.yaml").write_text("model_name: x\n" + text, encoding="utf-8")
    outcome.of(lambda: detector_settings(scratch / "signs.yaml", {}), InputError)


# --------------------------------------------------------------------------------------------------------- checkpoints


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 3)
        self.head = nn.Linear(3, 2)


SMALL = Small()
KEYS = [*SMALL.state_dict(), "backbone.embeddings.position_ids"]
shapes = st.lists(st.integers(0, 3), max_size=3)
tensors = shapes.map(torch.zeros)
prefixes = st.sampled_from(["", "", "", "module.", "module.module.", "base_model.", "backbone.", "classifier."])


def filled(model: Small, path: Path) -> bool:
    load_weights(model, path)
    return True


@st.composite
def checkpoint_content(draw: st.DrawFn) -> Any:
    """The right weights, with some keys renamed, lost, added, or given other shapes or no tensor at all."""
    weights: dict[Any, Any] = {key: value.clone() for key, value in SMALL.state_dict().items()}
    for _ in range(draw(st.integers(0, 2))):
        key = draw(st.sampled_from(KEYS) | names)
        action = draw(st.integers(0, 4))
        if action == 0:
            weights.pop(key, None)
        elif action == 1:
            weights[draw(prefixes) + key] = draw(tensors)
        elif action == 2:
            weights[key] = draw(scalars)
        elif key in weights:
            weights[draw(prefixes) + draw(names)] = weights.pop(key)
    prefix = draw(prefixes)
    weights = {prefix + key: value for key, value in weights.items()}
    return draw(st.sampled_from([weights, {"state_dict": weights}, {"model": weights, "epoch": 3}, [weights]]))


@given(content=checkpoint_content())
@fuzzed(CASES)
def test_checkpoint_key_sets(outcome: Outcome, scratch: Path, content: Any) -> None:
    torch.save(content, scratch / "weights.pth")
    model = Small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if outcome.of(lambda: filled(model, scratch / "weights.pth"), InputError) is None:
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def saved(**how: Any) -> bytes:
    data = io.BytesIO()
    torch.save(SMALL.state_dict(), data, **how)
    return data.getvalue()


@given(data=mutated(saved(), saved(_use_new_zipfile_serialization=False)))
@fuzzed(CASES // 2)
def test_checkpoint_by_bytes(outcome: Outcome, scratch: Path, data: bytes) -> None:
    (scratch / "bytes.pth").write_bytes(data)
    read = outcome.of(lambda: read_weights(scratch / "bytes.pth"), InputError)
    assert read is None or all(isinstance(value, Tensor) for value in read.values())


# ------------------------------------------------------------------------------------------------------------ images


def encoded(file_format: str, mode: str = "RGB", **how: Any) -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (12, 13, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(data, file_format, **how)
    return data.getvalue()


EXIF = Image.Exif()
EXIF[274] = 6  # turned by 90 degrees
SOURCES = [
    encoded("JPEG"), encoded("JPEG", exif=EXIF), encoded("JPEG", progressive=True), encoded("JPEG", "CMYK"), encoded("PNG"),
    encoded("PNG", "P"), encoded("PNG", "RGBA"), encoded("PNG", "1"), encoded("BMP"), encoded("GIF"), encoded("TIFF"),
    encoded("TIFF", compression="tiff_lzw"), encoded("WEBP"), encoded("PPM"), encoded("JPEG2000"),
]  # fmt: skip


@given(data=mutated(*SOURCES), resolution=st.none() | st.integers(1, 32))
@fuzzed(CASES)
def test_images_by_bytes(outcome: Outcome, data: bytes, resolution: int | None) -> None:
    pixels = outcome.of(lambda: decode_image(data, resolution), UnreadableImage)
    if pixels is not None:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert resolution is None or pixels.shape[:2] == (resolution, resolution)


# ------------------------------------------------------------------------------------- landmarks, videos and databases


def saved_points(**how: Any) -> bytes:
    data = io.BytesIO()
    np.save(data, np.random.default_rng(2).uniform(0, 200, (81, 2)).astype(how.get("dtype", np.float32)))
    return data.getvalue()


@given(data=mutated(saved_points(), saved_points(dtype=np.float64), saved_points(dtype=np.int64)))
@fuzzed(CASES // 4)
def test_landmarks_by_bytes(outcome: Outcome, scratch: Path, data: bytes) -> None:
    (scratch / "landmarks").mkdir(exist_ok=True)
    (scratch / "landmarks" / "a.npy").write_bytes(data)
    points = outcome.of(lambda: read_landmarks(str(scratch / "a.png")), UnreadableImage)
    assert points is None or (points.shape == (81, 2) and np.isfinite(points).all())


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    pytest.importorskip("av")
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    with video_writer(path, Fraction(25)) as write:
        for number, image in enumerate(np.random.default_rng(3).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)):
            write(image, 0.04 * number)
    return path.read_bytes()


def test_videos_by_bytes(scratch: Path, video: bytes) -> None:
    """FFmpeg decodes what it can of most of them."""
    outcome, path = Outcome(), scratch / "a.mp4"
    for seed in range(CASES // 4):
        path.write_bytes(mutate(seed, video))
        frames = outcome.of(lambda: [frame.image for frame in VideoReader(path)], UnreadableVideo)
        assert all(image.ndim == 3 and image.dtype == np.uint8 for image in frames or [])
    print(f"videos: {outcome.fine} fine, {outcome.refused} refused")
    assert min(outcome.fine, outcome.refused) >= 3, (outcome.fine, outcome.refused)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    lmdb = pytest.importorskip("lmdb")
    folder = tmp_path_factory.mktemp("toy_lmdb")
    with lmdb.open(str(folder), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        for number in range(40):
            transaction.put(f"{number}".encode(), bytes([number]) * 100)
    return (folder / "data.mdb").read_bytes()


READ, REFUSED = 0, 3


def test_databases_by_bytes(scratch: Path, database: bytes) -> None:
    """Each in a process of its own: LMDB, which is C and maps the file, is killed by a part of such files."""
    ends = []
    for seed in range(CASES // 4):
        folder = scratch / f"{seed}_lmdb"
        folder.mkdir()
        (folder / "data.mdb").write_bytes(mutate(seed, database))
        child = os.fork()
        if child == 0:
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.alarm(SECONDS)
            try:
                read_bytes(f"{folder}!/7")
            except UnreadableImage:
                os._exit(REFUSED)
            except BaseException:
                os._exit(1)
            os._exit(READ)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    killed = [end for end in ends if end in (-signal.SIGBUS, -signal.SIGSEGV, -signal.SIGABRT)]
    assert ends.count(READ) + ends.count(REFUSED) + len(killed) == len(ends), ends  # no traceback, none too slow
    print(f"databases: {ends.count(READ)} fine, {ends.count(REFUSED)} refused, {len(killed)} killed")
    assert min(ends.count(READ), ends.count(REFUSED)) >= 5 and len(killed) <= 0.3 * len(ends), ends


def test_the_unspoilt_sources_are_fine(scratch: Path) -> None:
    """What the mutations start from is accepted, so that a refusal above is due to the mutation."""
    for data in SOURCES:
        assert decode_image(data, None).size
    (scratch / "whole.pth").write_bytes(saved())
    load_weights(Small(), scratch / "whole.pth")
    assert tiny_config()
