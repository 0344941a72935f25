"""What a run gives to other programs: raw maps, FiftyOne, TensorBoard, video strips, notebooks."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_curve

from tests.helpers.command_server import CommandServer
from tests.helpers.datasets import DataTree
from tests.helpers.detectors import BLOCKS, PIXELS, images, tiny_detector
from tests.helpers.fake_run import LAYERS, remove_images, some_rows, write_run
from tests.helpers.paths import ROOT
from utils.gradcam_kit.base import packages
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.exports.formats import write_fiftyone, write_strips, write_tensorboard
from utils.gradcam_kit.run.exports import ExportOptions, check_exports, write_exports
from utils.gradcam_kit.store.read_run import read_run


def test_a_run_with_everything(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    out, events = tmp_path / "out", tmp_path / "events"
    flags = ["--gradcam_enabled", "--save_all_predictions", "--save_raw", "--fiftyone", "--video_strips",
             "--tensorboard", str(events), "--gradcam_output_dir", str(out)]  # fmt: skip
    done = commands.run("test_with_gradcam.py", *data_tree.arguments(*flags), cwd=tmp_path)
    assert done.code == 0, done.err
    for place in (out / "index.html", out / "fiftyone_samples.json", events, out / "toy" / "strips"):
        assert place.exists() and str(place) in done.out
    at_the_top = {path.name for path in out.iterdir() if path.is_file()} - {"manifest.json", "run.sqlite"}
    assert at_the_top <= set(json.loads((out / "manifest.json").read_text())["top_files"])
    # Raw maps: float32, the patch grid, equal to what the detector says of the same pixels in Python.
    frame = json.loads((out / "toy" / "sample5" / "sample5.json").read_text())["path"]
    image = cv2.resize(np.asarray(cv2.imread(frame)), (PIXELS, PIXELS), interpolation=cv2.INTER_CUBIC)[..., ::-1]
    image = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float().div(255).sub(0.5).div(0.5)
    explanation = tiny_detector().explain({"image": image}, layers=["encoder.layers.3", "encoder.layers.1"])
    with np.load(out / "toy" / "sample5" / "raw_sample5.npz") as raw:
        assert set(raw) == {f"encoder.layers.{i}{kind}" for i in (3, 1) for kind in ("", ".signed")}
        for layer, maps in explanation.layers.items():
            assert raw[layer].dtype == np.float32 and raw[layer].shape == maps.grid
            np.testing.assert_allclose(raw[layer], maps.raw[0], atol=1e-6 + 1e-4 * float(maps.raw.max()))
            scale = float(maps.signed.abs().max())
            np.testing.assert_allclose(raw[f"{layer}.signed"], maps.signed[0], atol=1e-6 + 1e-4 * scale)
    page = (out / "index.html").read_text()
    assert page.count('"number": ') == 24


def test_overwriting_sets_the_exports_aside_too(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    out = tmp_path / "out"
    everything = data_tree.arguments(
        "--gradcam_enabled", "--save_all_predictions", "--fiftyone", "--gradcam_output_dir", out
    )
    assert commands.run("test_with_gradcam.py", *everything, cwd=tmp_path).code == 0
    assert (out / "regions.csv").is_file()
    plain = data_tree.arguments("--gradcam_output_dir", out, "--overwrite")
    assert commands.run("test_with_gradcam.py", *plain, cwd=tmp_path).code == 0
    names = {path.name for path in out.rglob("*")}
    assert names == {"toy", "predictions.csv", "metrics.json", "manifest.json", "index.html", "run.sqlite"}
    (before,) = tmp_path.glob("out.before-*")
    assert (before / "regions.csv").is_file() and len(list(before.rglob("gradcam_comparison.png"))) == 24


def test_a_missing_package_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None if name == "tensorboard" else object())
    check_exports(ExportOptions())
    with pytest.raises(InputError, match="--tensorboard needs the package tensorboard, .* pip install tensorboard"):
        check_exports(ExportOptions(tensorboard=Path("x")))


@pytest.mark.parametrize(
    ("first", "says"),
    [
        ("import sys; sys.modules['jinja2'] = None", "jinja2 is missing"),
        ("import jinja2; jinja2.__version__ = '2.11.3'", "jinja2 2.11.3 is too old"),
        (
            "import markupsafe, sys\nfor name in [one for one in sys.modules if one.split('.')[0] == 'jinja2']:\n"
            " del sys.modules[name]\ndel markupsafe.Markup",
            "jinja2 cannot be imported (cannot import name 'Markup'",
        ),
    ],
)
def test_a_host_without_a_jinja2_that_works_gets_all_but_the_page(
    first: str, says: str, commands: CommandServer, data_tree: DataTree, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = data_tree.arguments("--gradcam_enabled", "--save_all_predictions", "--gradcam_output_dir", out)
    done = commands.start("test_with_gradcam.py", *flags, cwd=tmp_path, first=first).wait()
    assert done.code == 0, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("report: skipped")]
    assert len(lines) == 1 and says in lines[0] and "Traceback" not in done.err
    assert lines[0].endswith(f": pip install 'jinja2>=3', then python -m utils.report {out}")
    assert not (out / "index.html").exists()
    assert (out / "regions.csv").is_file() and (out / "manifest.json").is_file()
    assert len(list(out.rglob("gradcam_comparison.png"))) == 24


def test_other_programs_get_every_sample(tmp_path: Path) -> None:
    """The page shows every k-th of a large dataset; a FiftyOne dataset or a strip with holes would be wrong."""
    run = write_run(tmp_path / "run", some_rows(tmp_path))
    write_exports(run, ExportOptions(fiftyone=True, video_strips=True), shown_samples=5)
    assert (run / "index.html").read_text().count('"number": ') == 5 + 3  # of 18 every 4th, of 6 every 2nd
    assert len(json.loads((run / "fiftyone_samples.json").read_text())["samples"]) == 24
    assert len(list((run / "faces" / "strips").glob("*.png"))) == 9


def test_fiftyone_samples(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", some_rows(tmp_path))
    remove_images(run / "faces" / "sample1")
    written = json.loads(write_fiftyone(read_run(run)).read_text())
    assert written["media_type"] == "image" and len(written["samples"]) == 23
    first = written["samples"][0]
    assert first["ground_truth"] == {"_cls": "Classification", "label": "real"}
    assert first["prediction"]["label"] == "real" and first["prediction"]["confidence"] == pytest.approx(0.97)
    for layer in LAYERS:
        field = first["map_" + layer.replace(".", "_")]
        grey = np.asarray(cv2.imread(field["map_path"], cv2.IMREAD_UNCHANGED))
        assert Path(field["map_path"]).is_absolute() and grey.ndim == 2 and grey.dtype == np.uint8 and grey.max() == 255


def test_fiftyone_reads_them(tmp_path: Path) -> None:
    """By FiftyOne's own reader of a sample; its datasets need a MongoDB server, which tests do not start."""
    fiftyone = pytest.importorskip("fiftyone", reason="pip install fiftyone")
    run = write_run(tmp_path / "run", some_rows(tmp_path))
    for values in json.loads(write_fiftyone(read_run(run)).read_text())["samples"]:
        sample = fiftyone.Sample.from_dict(values)
        assert isinstance(sample["map_encoder_layers_5"], fiftyone.Heatmap) and sample.media_type == "image"
        assert sample.ground_truth.label in ("real", "fake") and 0.5 <= sample.prediction.confidence <= 1


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    rows = some_rows(tmp_path)
    run = write_run(tmp_path / "run", rows)
    write_tensorboard(read_run(run), tmp_path / "events")
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    assert events.Scalars("faces/auc")[0].value == pytest.approx(0.75)
    assert "faces/eer" not in events.Tags()["scalars"]  # null in metrics.json
    assert {"faces/encoder.layers.5", "faces/encoder.layers.3"} <= set(events.Tags()["images"])
    steps = events.Images("faces/encoder.layers.5")
    assert [image.step for image in steps] == list(range(18))  # a slider, one step per sample
    faces = [row for row in rows if row.dataset == "faces"]
    wrong_first = sorted(faces, key=lambda row: (row.outcome[0] == "T", -row.confidence))
    for image, row in zip(steps, wrong_first, strict=True):
        shown = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), 1)
        path = run / f"faces/sample{row.number}/gradcam_encoder.layers.5_sample{row.number}.png"
        assert np.array_equal(np.asarray(shown)[:64], np.asarray(cv2.imread(str(path))))
        assert (np.asarray(shown)[64:] < 100).any()  # a caption
    curve = tensor_util.make_ndarray(events.Tensors("faces/precision-recall")[0].tensor_proto)
    label = [row.label for row in rows if row.dataset == "faces"]
    score = [row.prob_fake for row in rows if row.dataset == "faces"]
    precision, recall, _ = precision_recall_curve(label, score)
    for p, r in zip(precision[:-1], recall[:-1], strict=True):
        assert min(np.abs(curve[4] - p) + np.abs(curve[5] - r)) < 1e-6


def test_video_strips(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", some_rows(tmp_path))
    remove_images(run / "faces" / "sample0")
    data = read_run(run).datasets[0]
    strips = write_strips(data)
    assert len(strips) == 9 and len({path.name for path in strips}) == 9  # three videos of three forgeries
    with (run / "faces" / "strips" / "consistency.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["consistency"] for row in rows} == {"1.0000"}  # the same map in every frame
    assert "000" not in {row["video"] for row in rows if row["forgery"] == "real_Real"}  # one frame left: no pair
    alone, two = (np.asarray(cv2.imread(str(path))) for path in strips[:2])
    assert alone.shape[1] < two.shape[1] and alone.shape[0] == two.shape[0]
    original, overlay = two[60, 200], two[60 + 112, 200]
    assert (original[::-1] == (90, 120, 60)).all() and (overlay[::-1] == (90, 120, 60)).all()


# --------------------------------------------------------------------------------------------------------- notebooks


def test_show_gradcam_is_a_figure_of_originals_and_overlays() -> None:
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    model = tiny_detector(gradcam_layers=["encoder.layers.3", "encoder.layers.2"])
    data = {"image": images(2).clamp(-1, 1)}
    figure = model.show_gradcam(data, target="fake")
    assert isinstance(figure, Figure) and pyplot.get_fignums() == []  # the caller's alone
    axes = figure.axes
    prob = model(data)["prob"]
    assert len(axes) == 6 and axes[1].get_title().startswith("encoder.layers.3")
    for i in range(2):
        verdict = "fake" if prob[i] > 0.5 else "real"
        assert axes[3 * i].get_title() == f"{verdict}, {max(prob[i], 1 - prob[i]):.3f}"
        expected = ((data["image"][i].permute(1, 2, 0) * 0.5 + 0.5) * 255).round().numpy()
        np.testing.assert_array_equal(np.asarray(axes[3 * i].images[0].get_array()), expected)
    heat = model.explain(data, layers=["encoder.layers.2"], target="fake").layers["encoder.layers.2"].normalised[0]
    jet = cv2.applyColorMap((heat.numpy() * 255).round().astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1].astype(float)
    original = np.asarray(axes[0].images[0].get_array()).astype(float)
    drawn = np.asarray(axes[2].images[0].get_array()).astype(float)
    assert np.abs(drawn - (original + jet) / 2).max() <= 1
    with pytest.raises(InputError, match="encoder"):
        model.show_gradcam(data, layers=[f"encoder.layers.{BLOCKS}"])


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="pip install nbclient ipykernel")
    import nbformat

    if not (ROOT / "assets" / "demo_detector" / "clip_demo.safetensors").is_file():
        pytest.skip("needs the embedded detector's weights")
    notebook = nbformat.read(ROOT / "examples" / "heatmaps.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # committed without results
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT / "examples")}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    text = "".join(output.get("text", "") for output in outputs)
    assert "fake probability" in text and "sum inside the mask" in text
