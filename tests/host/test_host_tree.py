"""In a host tree: the commands from both working directories, the host's own numbers, its CNN and Effort detectors."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.hosts import edit, install, make_effort_host, make_host, run_python

NOTE = "cannot all be imported here"

# Runs in the host, in one process, and prints what it finds as JSON: the host's own classes beside ours.
COMPARE = """
import json, sys
sys.path.insert(0, ".")
import numpy, torch, transformers, yaml
from utils.gradcam_kit.settings.config import detector_settings
from utils.gradcam_kit.model.host.registry import find_detectors
from pathlib import Path

name, weights = sys.argv[1], sys.argv[2]
settings = detector_settings(Path("config/detector") / (name + ".yaml"), {})
config = settings.config
known = find_detectors(name, config)
torch.manual_seed(3)
ours = known[name + "_gradcam"]({**config, "backbone_config": {**config["backbone_config"], "pretrained": False}}).eval()
with torch.no_grad():
    for parameter in ours.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
torch.save({"module." + key: value for key, value in ours.state_dict().items()}, weights)
image = torch.randn(3, 3, 64, 64)
result = {}
if name != "xception":

    class Published:
        @staticmethod
        def from_pretrained(path):
            tower = transformers.CLIPVisionModel(ours.backbone.config)
            return type("Model", (), {"vision_model": getattr(tower, "vision_model", tower)})

    __import__(f"detectors.{name}_detector")
    host = sys.modules[f"detectors.{name}_detector"]
    host.CLIPModel = Published
    if name == "effort":
        apply = host.apply_svd_residual_to_self_attn
        host.apply_svd_residual_to_self_attn = lambda model, r: apply(model, 31)
    theirs = known[name](config).eval()
    theirs.head = torch.nn.Linear(32, 2)
    result["keys"] = list(theirs.state_dict()) == list(ours.state_dict())
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        a, b = theirs({"image": image}, inference=True), ours({"image": image}, inference=True)
    result["equal"] = all(torch.equal(a[key], b[key]) for key in ("cls", "prob", "feat"))
    result["subclass"] = issubclass(known[name + "_gradcam"], known[name])
ours.enable_gradcam()
maps = ours.generate_gradcam({"image": image}, target="fake")
result["maps"] = {layer: one.tolist() for layer, one in maps.items()}
if name == "xception":  # Grad-CAM by hand: what the shared ReLU returns last, and a plain backward pass in float64
    double = ours.double()
    x = torch.relu(double.backbone.bn1(double.backbone.conv1(image.double())))
    features = torch.relu(double.backbone.bn4(double.backbone.conv4(x))).detach().requires_grad_()
    double.backbone.last_linear(features.mean(dim=(2, 3)))[:, 1].sum().backward()
    weight = features.grad.mean(dim=(2, 3), keepdim=True)
    result["by_hand"] = (weight * features).sum(1).clamp(min=0).tolist()
print(json.dumps(result))
"""


def compare(training: Path, name: str) -> dict[str, Any]:
    done = run_python("-c", COMPARE, name, "weights.pth", cwd=training)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def evaluate(
    training: Path, cwd: Path, detector: str, output: str, *flags: str, weights: str = "weights.pth"
) -> tuple[int, str, str]:
    """`test_with_gradcam.py` with paths relative to the working directory, as the host's own test.py is called."""
    prefix = "" if cwd == training else "training/"
    done = run_python(
        f"{prefix}test_with_gradcam.py", "--detector_path", f"./{prefix}config/detector/{detector}.yaml",
        "--weights_path", f"{prefix}{weights}", "--test_dataset", "Celeb-DF-v2", "--device", "cpu",
        "--gradcam_output_dir", output, *flags, cwd=cwd,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed host whose `import detectors` fails, with the weights of a CLIP detector."""
    training = make_host(tmp_path_factory.mktemp("host"))
    assert install(training).returncode == 0
    return training


@pytest.fixture(scope="module")
def clip(host: Path) -> dict[str, Any]:
    return compare(host, "clip")


def test_logits_are_the_hosts_own_to_the_last_bit(clip: dict[str, Any]) -> None:
    assert clip["keys"] and clip["equal"] and clip["subclass"]
    assert np.array(clip["maps"]["encoder.layers.2"]).max() == 1


@pytest.mark.parametrize("from_parent", [True, False])
def test_heatmaps_from_either_working_directory(
    host: Path, clip: dict[str, Any], tmp_path: Path, from_parent: bool
) -> None:
    """From the parent the host's relative folders are found as the host finds them, from training/ by our own search."""
    cwd = host.parent if from_parent else host
    code, _, err = evaluate(host, cwd, "clip", str(tmp_path / "out"), "--gradcam_enabled", "--save_all_predictions")
    assert code == 0, err
    assert NOTE not in err  # the host's other detectors, one of which lacks a package, were not asked for
    samples = list((tmp_path / "out" / "Celeb-DF-v2").glob("sample*/gradcam_comparison.png"))
    assert len(samples) == 12  # two frames each of three real and three fake videos
    rows = list(csv.DictReader((tmp_path / "out" / "Celeb-DF-v2" / "predictions.csv").open(encoding="utf-8")))
    assert {row["path"].split("datasets/")[0] for row in rows} == {f"{host.parent}/"}


@pytest.mark.slow
@pytest.mark.parametrize(("sampling", "numbers"), [("host", ["007", "000"]), ("host_sorted", ["000", "007"])])
def test_metrics_are_the_hosts_own(
    host: Path, clip: dict[str, Any], tmp_path: Path, sampling: str, numbers: list[str]
) -> None:
    """The host's `get_test_metrics` on the frames that the host takes; video AUC differs where names collide."""
    config = host / "config" / "detector" / f"{sampling}.yaml"
    config.write_text((host / "config/detector/clip.yaml").read_text() + f"frame_sampling: {sampling}\n")
    code, _, err = evaluate(host, host, sampling, str(tmp_path / "out"))
    assert code == 0, err
    rows = list(csv.DictReader((tmp_path / "out" / "Celeb-DF-v2" / "predictions.csv").open(encoding="utf-8")))
    assert [Path(row["path"]).stem for row in rows] == numbers * 6
    (host / "rows.json").write_text(json.dumps(rows))
    printed = run_python("-c", (
        "import json, numpy as np; from metrics.utils import get_test_metrics; r = json.load(open('rows.json'));"
        "m = get_test_metrics(np.array([float(x['prob_fake']) for x in r]), np.array([int(x['label']) for x in r]),"
        "[x['path'] for x in r]); print(json.dumps({k: float(v) for k, v in m.items()}))"
    ), cwd=host)  # fmt: skip
    assert printed.returncode == 0, printed.stderr
    wanted = json.loads(printed.stdout)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))["Celeb-DF-v2"]
    for ours, theirs in (("acc", "acc"), ("auc", "auc"), ("eer_host", "eer"), ("ap", "ap")):
        assert metrics[ours] == pytest.approx(wanted[theirs], abs=1e-9)
    assert metrics["videos"] == 6  # by the folder's name alone, as the host counts, there would be four


@pytest.mark.slow
def test_a_cnn_is_explained_from_its_own_yaml(host: Path, tmp_path: Path) -> None:
    found = compare(host, "xception")
    assert list(found["maps"]) == ["backbone.relu"]
    by_hand = torch.tensor(found["by_hand"], dtype=torch.float64).unsqueeze(1)
    grown = torch.nn.functional.interpolate(by_hand, size=(64, 64), mode="bilinear").squeeze(1)
    low, high = grown.amin((1, 2), keepdim=True), grown.amax((1, 2), keepdim=True)
    np.testing.assert_allclose(
        np.array(found["maps"]["backbone.relu"]), ((grown - low) / (high - low)).numpy(), atol=1e-4
    )
    code, _, err = evaluate(
        host, host, "xception", str(tmp_path / "out"), "--gradcam_enabled", "--save_all_predictions",
        "--calibration_images", "0",
    )  # fmt: skip
    assert code == 0, err
    notes = [line for line in err.splitlines() if NOTE in line]
    assert len(notes) == 1 and "a_package_that_nobody_has" in notes[0] and "detectors.xception_detector" in notes[0]
    assert len(list((tmp_path / "out").rglob("gradcam_backbone.relu_sample*.png"))) == 12
    said = next((tmp_path / "out").rglob("*_metadata.txt")).read_text(encoding="utf-8")
    assert "Site: output" in said.splitlines()  # a CNN has no LayerNorm to read before


def test_effort_keeps_its_keys_and_its_logits(host: Path) -> None:
    found = compare(host, "effort")
    assert found["keys"] and found["equal"] and found["subclass"]
    assert list(found["maps"]) == ["encoder.layers.2"] and np.array(found["maps"]["encoder.layers.2"]).max() == 1


@pytest.mark.slow
def test_efforts_tree_offers_effort_alone(tmp_path: Path) -> None:
    training = make_effort_host(tmp_path)
    assert install(training).returncode == 0
    compare(training, "effort")
    weights = torch.load(training / "weights.pth")
    # As a checkpoint of another version of the host, which does not store the fixed factors.
    torch.save({key: value for key, value in weights.items() if not key.endswith(".S_r")}, training / "weights.pth")
    code, _, err = evaluate(training, training.parent, "effort", str(tmp_path / "out"), "--gradcam_enabled")
    assert code == 0, err
    code, _, err = evaluate(training, training, "clip_gradcam", str(tmp_path / "none"))
    assert code == 2 and err.rstrip().endswith("registered: effort, effort_gradcam") and "Traceback" not in err


@pytest.mark.slow
def test_a_host_that_imports_is_left_to_do_so(tmp_path: Path) -> None:
    training = make_host(tmp_path, whole=True)
    plain = run_python("train.py", cwd=training)
    assert install(training).returncode == 0
    done = run_python("training/train.py", cwd=training.parent)
    assert plain.stdout == "['clip', 'effort', 'xception']\n"
    assert done.stdout == "['clip', 'clip_gradcam', 'effort', 'effort_gradcam', 'xception', 'xception_gradcam']\n"
    listed = run_python(
        "test_with_gradcam.py", "--detector_path", "config/detector/clip.yaml", "--list_layers", cwd=training
    )
    assert listed.returncode == 0 and "encoder.layers.2" in listed.stdout and NOTE not in listed.stderr


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["", "import a_package_that_nobody_has\n"])
def test_a_command_imports_what_it_asks_for_alone_or_else_all(tmp_path: Path, damage: str) -> None:
    """In a host whose whole import works: it is not needed, unless a part that one detector asks for does not."""
    training = make_host(tmp_path, whole=True)
    assert install(training).returncode == 0
    for package in ("detectors", "networks"):
        init = training / package / "__init__.py"
        init.write_text(init.read_text(encoding="utf-8") + f"print('whole {package}')\n", encoding="utf-8")
    edit(training / "detectors" / "clip_detector_gradcam.py", "from __future__ import annotations\n",
         "from __future__ import annotations\nimport sys\nif not hasattr(sys.modules['detectors'], '__file__'):\n    "
         f"{damage or 'pass'}\n")  # fmt: skip
    for model in ("clip", "xception"):
        done = run_python(
            "test_with_gradcam.py", "--detector_path", f"config/detector/{model}.yaml", "--list_layers", cwd=training
        )
        assert done.returncode == 0 and NOTE not in done.stderr, done.stderr
        whole = "whole detectors" in done.stdout and "whole networks" in done.stdout
        assert whole == (model == "xception" or bool(damage))


def test_what_the_asked_for_detector_lacks_is_said(tmp_path: Path) -> None:
    training = make_host(tmp_path)
    edit(
        training / "detectors" / "clip_detector.py",
        "from torch import nn\n",
        "import another_package_that_nobody_has.layers\nfrom torch import nn\n",
    )
    assert install(training).returncode == 0
    arguments = ("test_with_gradcam.py", "--detector_path", "config/detector/clip.yaml", "--list_layers")
    done = run_python(*arguments, cwd=training)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "needs the package 'another_package_that_nobody_has', which is not installed" in done.stderr.splitlines()[-1]
