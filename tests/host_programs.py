"""A benchmark's own train.py and test.py, run to their ends with this library installed and heatmaps on and off.

Called by `tests/real_hosts.py TREE --programs`. Nothing in the tree is edited except `lmdb`. What the programs need on
a machine without a GPU is put next to the tree: a landmark file for dlib, and a sitecustomize.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml

DATASET = "Celeb-DF-v2"
LABELS = {"CelebDFv2_real": 0, "CelebDFv2_fake": 1}
LANDMARKS = "preprocessing/dlib_tools/shape_predictor_81_face_landmarks.dat"
# The programs ask for a GPU while they are imported and for every batch. torchvision's wheel for CUDA needs two
# operators declared where torch is the build for CPUs.
WITHOUT_GPU = """
import torch

if not torch.cuda.is_available():
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    torch.cuda.get_device_name = lambda: "none"
    torch.cuda.set_device = lambda device: None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
# What a user adds to train.py for heatmaps at each validation: where to add it → lines. The batch is made without a
# DataLoader, because starting one draws a random number.
LOGGED = {
    "    # start training\n": """
    from utils.gradcam import log_gradcam
    name, loader = next(iter(test_data_loaders.items()))
    fixed = loader.collate_fn([loader.dataset[i] for i in range(4)])
    fixed = {key: fixed[key].cuda() for key in ('image', 'label')}
""",
    "        if best_metric is not None:\n": """
        log_gradcam(trainer.get_writer('test', name, 'gradcam'), trainer.model, fixed, epoch, every=1)
""",
}
SHORT = {"train_batchSize": 4, "test_batchSize": 4, "workers": 0, "nEpochs": 1, "save_ckpt": True,
         "train_dataset": [DATASET], "test_dataset": [DATASET]}  # fmt: skip
SMALL_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
               "image_size": 224, "patch_size": 32}  # fmt: skip
# YAML → the same detector with heatmaps off and on. The benchmark's own clip downloads its tower.
OFF_AND_ON: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "meso4": ({}, {"model_name": "meso4_gradcam", "gradcam_enabled": True}),
    "clip_gradcam": ({"gradcam_enabled": False}, {"gradcam_enabled": True}),
}


def check(training: Path) -> list[str]:
    """Train, test and compare each detector of OFF_AND_ON. Return one row of a Markdown table for each."""
    work = training.parent
    prepare(work)
    rows = []
    for name, changes in OFF_AND_ON.items():
        yamls = []
        for kind, change in zip(("off", "on"), changes, strict=True):
            config = yaml.safe_load((training / "config" / "detector" / f"{name}.yaml").read_text(encoding="utf-8"))
            if name == "clip_gradcam":
                config |= {"backbone_config": {"architecture": SMALL_TOWER}, "gradcam_layers": [2]}
            config |= {**SHORT, "gradcam_save_dir": "./unwanted", "task_target": f"{name}_{kind}", **change}
            yamls.append(work / f"{name}_{kind}.yaml")
            yamls[-1].write_text(yaml.safe_dump(config))
        rows.append(compared(training, name, yamls))
    assert not (work / "unwanted").exists(), "the benchmark's programs drew heatmaps by themselves"
    return rows


def prepare(work: Path) -> None:
    """Write the data set, the landmark file and sitecustomize.py, and set `lmdb: False`."""
    entries: dict[str, dict[str, Any]] = {label: {} for label in LABELS}
    random = np.random.default_rng(5)
    for split, videos in (("train", "abcd"), ("test", "efg")):
        for label, number in LABELS.items():
            entries[label][split] = {
                f"{label}_{video}": {"label": label, "frames": frames(work, f"{label}_{video}", number, random)}
                for video in videos
            }
    folder = work / "preprocessing" / "dataset_json"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{DATASET}.json").write_text(json.dumps({DATASET: entries}))
    for name in ("test_config.yaml", "train_config.yaml"):
        path = work / "training" / "config" / name
        path.write_text(path.read_text(encoding="utf-8").replace("lmdb: True", "lmdb: False"), encoding="utf-8")
    (work / "site").mkdir(exist_ok=True)
    (work / "site" / "sitecustomize.py").write_text(WITHOUT_GPU)
    write_landmark_model(work / LANDMARKS)
    source = (work / "training" / "train.py").read_text(encoding="utf-8")
    for place, lines in LOGGED.items():
        assert source.count(place) == 1, place
        source = source.replace(place, lines.lstrip("\n") + place)
    (work / "training" / "train_logged.py").write_text(source, encoding="utf-8")


def frames(work: Path, video: str, number: int, random: np.random.Generator) -> list[str]:
    """Write four frames of a video; the fakes have a bright square. Paths start with "./", as the benchmark's do."""
    names = [f"./datasets/toy/{video}/frames/{video}/{frame:03d}.png" for frame in range(4)]
    for name in names:
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_CUBIC)
        image[100:150, 100:150, 0] |= np.uint8(255 * number)
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(work / name), image)
    return names


def write_landmark_model(path: Path) -> None:
    """Write a model of 81 random points, instead of the one that the benchmark's README links."""
    import dlib

    random = np.random.default_rng(0)
    images, faces = [], []
    for _ in range(2):
        points = [dlib.point(int(x), int(y)) for x, y in random.integers(8, 56, (81, 2))]
        images.append(random.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        faces.append([dlib.full_object_detection(dlib.rectangle(8, 8, 56, 56), points)])
    options = dlib.shape_predictor_training_options()
    options.cascade_depth = options.tree_depth = options.num_trees_per_cascade_level = options.num_test_splits = 1
    options.feature_pool_size = 10
    path.parent.mkdir(parents=True, exist_ok=True)
    dlib.train_shape_predictor(images, faces, options).save(str(path))


def compared(training: Path, name: str, yamls: list[Path]) -> str:
    """Run both programs with heatmaps off and on, and ours. Raises AssertionError where they differ."""
    work = training.parent
    trained = []
    for path, program in zip(yamls, ("train.py", "train_logged.py"), strict=True):
        started(training, program, "--detector_path", path)
        (log,) = (work / "logs" / "training").glob(f"*_{path.stem}_*")
        trained.append(log)
    weights = [log / "test" / DATASET / "ckpt_best.pth" for log in trained]
    first, second = (torch.load(path, weights_only=True) for path in weights)
    same_weights = first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert same_weights, f"{name}: training with log_gradcam gives other weights"
    plain, logged = (image_steps(log) for log in trained)
    assert not plain, f"{name}: images in TensorBoard without log_gradcam"
    assert logged, f"{name}: no heatmaps in TensorBoard"
    assert all(steps == [0, 1] for steps in logged.values()), f"{name}: {logged}"
    off, on = (
        started(training, "test.py", "--detector_path", path, "--test_dataset", DATASET, "--weights_path", weights[0])
        for path in yamls
    )
    results = [text.stdout + "\n" + text.stderr for text in (off, on)]
    numbers = [metrics_in(text) for text in results]
    assert numbers[0] == numbers[1], f"{name}: test.py gives {numbers[0]} without heatmaps, {numbers[1]} with them"
    ours = own_metrics(training, yamls[1], weights[0])
    different = {key: (numbers[0][key], value) for key, value in ours.items() if numbers[0][key] != value}
    assert not different, f"{name}: test_with_gradcam.py gives other numbers: {different}"
    shown = ", ".join(f"{key} {value:.4g}" for key, value in ours.items())
    return f"| {name} | identical | {', '.join(logged)} | identical ({shown}) | identical |"


def started(training: Path, program: str, *flags: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of the programs from the folder above, as the benchmark's README does. Raises where it fails."""
    path = os.pathsep.join([str(training.parent / "site"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(
        [sys.executable, f"training/{program}", *map(str, flags)],
        cwd=training.parent, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, (
        f"{program} {flags} ends with {done.returncode}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    return done


def image_steps(log: Path) -> dict[str, list[int]]:
    """Return the images in a TensorBoard log: tag → steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for folder in {path.parent for path in log.rglob("events.out.tfevents*")}:
        events = EventAccumulator(str(folder)).Reload()
        found.update({tag: [image.step for image in events.Images(tag)] for tag in events.Tags()["images"]})
    return found


def metrics_in(text: str) -> dict[str, float]:
    """Return the numbers that the benchmark's test.py prints for a dataset. Raises where it did not end."""
    assert "===> Test Done!" in text, text[-2000:]
    return {key: float(value) for key, value in re.findall(r"^(acc|auc|eer|ap|video_auc): (\S+)$", text, re.MULTILINE)}


def own_metrics(training: Path, path: Path, weights: Path) -> dict[str, float]:
    """Run test_with_gradcam.py on the same weights and frames; return its metrics by the benchmark's names."""
    out = training.parent / "ours" / path.stem
    started(training, "test_with_gradcam.py", "--detector_path", path, "--weights_path", weights, "--test_dataset",
            DATASET, "--gradcam_enabled", "--gradcam_output_dir", out, "--device", "cpu", "--overwrite")  # fmt: skip
    found = json.loads((out / "metrics.json").read_text())[DATASET]
    assert list(out.rglob("gradcam_comparison.png")), f"{path.name}: no heatmaps"
    names = {"acc": "acc", "auc": "auc", "eer": "eer_host", "ap": "ap", "video_auc": "video_auc"}
    return {theirs: found[ours] for theirs, ours in names.items()}
