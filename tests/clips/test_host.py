"""A clip detector in a host tree: registered there, with a sigmoid inside, as I3D is, evaluated and on a video."""

from __future__ import annotations

import csv
import json
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from tests.helpers.hosts import edit, install, make_host, run_python

DETECTOR = """
import torch
from torch import nn
from detectors import DETECTOR
from .base_detector import AbstractDetector


@DETECTOR.register_module(module_name="slow")
class SlowDetector(AbstractDetector):
    def __init__(self, config):
        super().__init__()
        self.first = nn.Conv3d(3, 8, 3, (1, 2, 2), 1)
        self.last = nn.Conv3d(8, 16, 3, 2, 1)
        self.projection = nn.Linear(16, 1)
        self.act = nn.Sigmoid()

    def build_backbone(self, config): pass
    def build_loss(self, config): pass
    def features(self, data_dict): pass
    def classifier(self, features): pass
    def get_losses(self, data_dict, pred_dict): pass
    def get_train_metrics(self, data_dict, pred_dict): pass

    def forward(self, data_dict, inference=False):
        pathways = [data_dict["image"].permute(0, 2, 1, 3, 4)]
        volume = torch.relu(self.last(torch.relu(self.first(pathways[0]))))
        prob = self.act(self.projection(volume.mean((2, 3, 4))))
        return {"cls": prob, "prob": prob, "feat": prob}
"""
CONFIG = {"model_name": "slow", "video_mode": True, "clip_size": 4, "resolution": 32, "pretrained": None, "mean": [0.5] * 3,
          "std": [0.5] * 3, "frame_num": {"train": 8, "test": 8}}  # fmt: skip


def write_clips(parent: Path) -> None:
    """Three real and three fake videos of ten frames, which stand in the JSON in no order."""
    labels: dict[str, object] = {}
    random = np.random.default_rng(5)
    for label in ("CelebDFv2_real", "CelebDFv2_fake"):
        entries = {}
        for video in ("id0", "id1", "id2"):
            names = [f"Clips/{label}/frames/{video}/{number:03d}.png" for number in (7, 0, 3, 1, 9, 2, 8, 5, 4, 6)]
            for name in names:
                path = parent / "datasets" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), random.integers(0, 256, (40, 40, 3), dtype=np.uint8))
            entries[video] = {"label": label, "frames": [name.replace("/", "\\") for name in names]}
        labels[label] = {"test": entries}
    (parent / "preprocessing" / "dataset_json" / "Clips.json").write_text(json.dumps({"Clips": labels}))


FLAGS = ["--test_dataset", "Clips", "--device", "cpu", "--gradcam_enabled", "--save_all_predictions"]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    training = make_host(tmp_path_factory.mktemp("host"), whole=True)
    (training / "detectors" / "slow_detector.py").write_text(DETECTOR)
    init = training / "detectors" / "__init__.py"
    edit(init, "from .xception_detector", "from .slow_detector import SlowDetector\nfrom .xception_detector")
    (training / "config" / "detector" / "slow.yaml").write_text(yaml.safe_dump(CONFIG))
    write_clips(training.parent)
    assert install(training).returncode == 0
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    for name, shape in {"first": (8, 3, 3, 3, 3), "last": (16, 8, 3, 3, 3), "projection": (1, 16)}.items():
        state |= {f"{name}.weight": 0.3 * torch.randn(shape), f"{name}.bias": torch.zeros(shape[0])}
    torch.save(state, training / "slow.pth")
    return training


def as_the_host_reads(path: Path) -> np.ndarray:
    """Its `load_rgb`."""
    image = cv2.imread(str(path))
    assert image is not None, path
    return cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), (32, 32), interpolation=cv2.INTER_CUBIC)


def forward_by_hand(host: Path, clips: torch.Tensor) -> torch.Tensor:
    """The host's arithmetic, in float64: the logits before the sigmoid."""
    state = {name: value.double() for name, value in torch.load(host / "slow.pth", weights_only=True).items()}
    volume = torch.relu(torch.nn.functional.conv3d(clips, state["first.weight"], state["first.bias"], (1, 2, 2), 1))
    volume = torch.relu(torch.nn.functional.conv3d(volume, state["last.weight"], state["last.bias"], 2, 1))
    return volume.mean((2, 3, 4)) @ state["projection.weight"].T + state["projection.bias"]


def test_it_is_evaluated_and_explained_by_its_logit(host: Path) -> None:
    flags = [*FLAGS, "--workers", "0"]
    done = run_python("test_with_gradcam.py", "--detector_path", "config/detector/slow.yaml", "--weights_path", "slow.pth",
                      *flags, "--gradcam_output_dir", "out", cwd=host)  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (host / "out" / "Clips" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (host / "out" / "Clips" / "clips.csv").open(newline="") as file:
        clips = list(csv.DictReader(file))
    assert len(rows) == len(clips) == 12 and {clip["frames"] for clip in clips} == {"0 1 2 3", "4 5 6 7"}
    for row, clip in list(zip(rows, clips, strict=True))[:3]:
        paths = [Path(clip["first"]).with_name(f"{int(number):03d}.png") for number in clip["frames"].split()]
        images = [as_the_host_reads(path) for path in paths]
        pixels = (torch.from_numpy(np.stack(images)).double() / 255 - 0.5) / 0.5
        logit = float(forward_by_hand(host, pixels.permute(3, 0, 1, 2).unsqueeze(0)))
        assert float(row["logit_fake"]) == pytest.approx(logit, abs=1e-5)
        assert float(row["prob_fake"]) == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)
    assert "order of frames: the detector" in done.stdout or "order of frames: not clear" in done.stdout
    order = json.loads((host / "out" / "frame_order.json").read_text())
    assert order["clips"] == 6 and order["order"][0] > 0
    sample = json.loads((host / "out" / "Clips" / "sample0" / "sample0.json").read_text())
    assert sample["layers"][0]["name"] == "last" and any("order of frames" in line for line in sample["chosen"])


def test_verdicts_of_a_few_clips(host: Path) -> None:
    flags = [*FLAGS, "--gradcam_samples", "3"]
    done = run_python("test_with_gradcam.py", "--detector_path", "config/detector/slow.yaml", "--weights_path", "slow.pth",
                      *flags, "--check_maps", "--workers", "0", "--gradcam_output_dir", "few", "--calibration_images", "0",
                      cwd=host)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "order of frames" not in done.stdout and "(of 3)" in done.stdout
    samples = [json.loads(path.read_text()) for path in (host / "few").rglob("sample*.json")]
    checks = [sample["layers"][0]["check"] for sample in samples]
    assert len(checks) == 3 and all(check["fall"] is not None and check["votes"] is None for check in checks)


def write_video(path: Path, frames: int) -> None:
    av = pytest.importorskip("av")
    from utils.gradcam_kit.media.video_files import video_writer

    assert av
    random = np.random.default_rng(2)
    coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    with video_writer(path, Fraction(25)) as write:
        for i in range(frames):
            image = np.roll(cv2.resize(coarse, (64, 64), interpolation=cv2.INTER_CUBIC), 3 * i, axis=1)
            write(image, i / 25 + 0.2 * (i > 10))


def test_a_video(host: Path) -> None:
    """Frames spread over the video, as the hosts' preprocessing keeps them; true times, also of a variable rate."""
    write_video(host / "film.mp4", 22)
    done = run_python("utils/gradcam_demo.py", "--detector_path", "config/detector/slow.yaml", "--weights_path", "slow.pth",
                      "--input", "film.mp4", "--output", "film", "--device", "cpu", "--face_crop", "off", cwd=host)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "(mean of 2 clips of 4 frames), hottest frame " in done.stdout
    folder = host / "film" / "film"
    with (folder / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = [int(place) for place in np.linspace(0, 21, 8, dtype=int)]
    assert [int(row["frame"]) for row in rows] == numbers and [row["clip"] for row in rows] == ["0"] * 4 + ["1"] * 4
    assert [float(row["seconds"]) for row in rows] == pytest.approx(
        [n / 25 + 0.2 * (n > 10) for n in numbers], abs=1e-3
    )
    video = json.loads((folder / "video.json").read_text())
    assert [clip["frames"] for clip in video["clips"]] == [numbers[:4], numbers[4:]] and video["frames"] == 22
    assert {"clip0", "clip1", "overlay.mp4"} <= {path.name for path in folder.iterdir()}
    assert np.load(folder / "clip0" / "raw_sample0.npz")["last"].shape == (2, 8, 8)
    from utils.gradcam_kit.media.video_files import VideoReader

    shown = list(VideoReader(folder / "overlay.mp4"))
    assert [frame.seconds for frame in shown] == pytest.approx([float(row["seconds"]) for row in rows], abs=1e-3)


@pytest.mark.parametrize(("frames", "says"), [(3, "one person is seen in 3 frames, but a clip has 4")])
def test_a_short_video_and_an_image_are_one_line(host: Path, frames: int, says: str) -> None:
    write_video(host / "short.mp4", frames)
    common = ["utils/gradcam_demo.py", "--detector_path", "config/detector/slow.yaml", "--weights_path", "slow.pth",
              "--device", "cpu", "--face_crop", "off", "--output", "short"]  # fmt: skip
    done = run_python(*common, "--input", "short.mp4", cwd=host)
    assert done.returncode == 2 and says in done.stderr
    cv2.imwrite(str(host / "one.png"), np.zeros((40, 40, 3), np.uint8))
    done = run_python(*common, "--input", "one.png", cwd=host)
    assert done.returncode == 2 and "is an image, but the detector reads clips: give videos" in done.stderr
