"""The figure of a run whose maps are known, read back from the file: what text it holds, where its colour lies."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers.fake_run import LAYERS, Row, changed_row, write_row, write_tables
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.report.command import main
from utils.gradcam_kit.report.figure import Column, FigureStyle, cells, paper_figure
from utils.gradcam_kit.report.paper import escaped
from utils.gradcam_kit.store.read_run import read_run

ROWS = [Row(3, "toy", "toy_Fake", "v", 1, 0.9, "3.png", hot=(0, 3)), Row(7, "toy", "toy_Real", "w", 0, 0.2, "7.png")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_tables(tmp_path / "run", ROWS)
    for row in ROWS:
        write_row(tmp_path / "run", row, empty=row.number == 7)
    return tmp_path / "run"


def test_the_heat_lies_where_the_map_is_hot(run: Path) -> None:
    (sample, _) = read_run(run).datasets[0].samples
    image, _, first, _ = cells([sample], [Column(0, layer, layer) for layer in LAYERS])
    assert np.abs(image.image.astype(int) - (90, 120, 60)).max() <= 2  # the image of the fixture
    assert first.heat is not None and first.heat.max() == 1
    row, column = np.unravel_index(first.heat.argmax(), first.heat.shape)
    assert (int(row) * 4 // 64, int(column) * 4 // 64) == (0, 3)


@pytest.mark.parametrize("suffix", ["pdf", "svg", "png"])
def test_text_is_text_and_the_width_is_the_columns(run: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"figure.{suffix}"
    assert main(["figure", str(run), "--samples", "7", "3", "-o", str(path), "--column", "single"]) == 0
    if suffix == "svg":
        text = path.read_text()
        for words in (
            "Grad-CAM",
            "block 5",
            "block 3",
            "label: fake, P(fake) = 0.90",
            "label: real, P(fake) = 0.20",
            "empty map",
        ):
            assert words in text
        assert "forged region" not in text  # no sample has a mask
    if suffix == "png":
        read = cv2.imread(str(path))
        assert read is not None and abs(read.shape[1] / 300 - 3.3) < 0.01
    if suffix == "pdf":
        assert b"/Type3" not in path.read_bytes()  # publishers refuse such fonts


def test_without_numbers_the_first_of_the_page_are_drawn(tmp_path: Path) -> None:
    """The most confident mistakes, then detected fakes: samples 5, 2 and 3, not 1, which is a true negative."""
    rows = [Row(1, "toy", "toy_Real", "a", 0, 0.01, "1.png"), Row(2, "toy", "toy_Real", "b", 0, 0.60, "2.png"),
            Row(3, "toy", "toy_Fake", "c", 1, 0.97, "3.png"), Row(5, "toy", "toy_Fake", "d", 1, 0.10, "5.png")]  # fmt: skip
    write_tables(tmp_path / "run", rows)
    for row in rows:
        write_row(tmp_path / "run", row)
    path = tmp_path / "figure.svg"
    assert main(["figure", str(tmp_path / "run"), "-o", str(path)]) == 0
    text = path.read_text()
    places = [text.index(f"P(fake) = {score}") for score in ("0.10", "0.60", "0.97")]
    assert places == sorted(places) and "P(fake) = 0.01" not in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--samples", "4"], "no heatmap for sample 4 in 'toy'; available: 3, 7"),
        (["--samples", "3", "--layers", "encoder.layers.9"], "'encoder.layers.9' is not in the run"),
        (["--samples", "3", "--dataset", "to"], "did you mean 'toy'"),
        (["--samples", "3", "--width", "nan"], "--width is nan"),
        (["--samples", "3", "-o", "x.gif"], "give a file"),
        (["--samples", "3", "--methods", "hirescam"], "'hirescam' is in none of the runs; .*they have gradcam"),
    ],
)
def test_what_is_not_there(run: Path, tmp_path: Path, flags: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        main(["figure", str(run), "-o", str(tmp_path / "f.pdf"), *flags])
    assert not (tmp_path / "f.pdf").exists()


def test_a_sample_whose_images_are_gone(run: Path, tmp_path: Path) -> None:
    (run / "toy" / "sample3" / "gradcam_comparison.png").unlink()
    with pytest.raises(InputError, match="its images were not saved, and the dataset's file is gone"):
        main(["figure", str(run), "--samples", "3", "-o", str(tmp_path / "f.pdf")])


def test_methods_of_several_runs_stand_beside_each_other(run: Path, tmp_path: Path) -> None:
    """The second run has the other method and its heat elsewhere; samples are matched by their image."""
    other = tmp_path / "other"
    write_tables(other, ROWS)
    for row in ROWS:
        write_row(other, row._replace(hot=(3, 0)))
    changed_row(other, "sample", "facts", lambda text: text.replace('"gradcam"', '"hirescam"'))
    path = tmp_path / "figure.svg"
    runs, layer = [str(run), str(other)], LAYERS[0]
    assert (
        main(
            ["figure", *runs, "--samples", "3", "--layers", layer, "--methods", "hirescam", "gradcam", "-o", str(path)]
        )
        == 0
    )
    text = path.read_text()
    assert text.index("HiResCAM") < text.index("Grad-CAM")
    samples = [read_run(folder).datasets[0].samples[0] for folder in (run, other)]
    _, _, first, second = cells(samples, [Column(0, layer, ""), Column(1, layer, "")])
    assert first.heat is not None and second.heat is not None
    assert first.heat[8, 56] > 0.9 and second.heat[56, 8] > 0.9 and first.heat[56, 8] == 0


def test_the_titles_and_the_type_of_a_paper(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "figure.svg"
    flags = ["--titles", "Input", "Ours", "Theirs", "--letters", "--font", "serif", "--column", "single"]
    assert main(["figure", str(run), "--samples", "3", "-o", str(path), *flags]) == 0
    text = path.read_text()
    assert all(words in text for words in ("(a) Input", "(b) Ours", "(c) Theirs", "STIXGeneral"))
    assert "Grad-CAM" not in text and "DejaVu" not in text
    with pytest.raises(InputError, match="--titles gives 1; the figure has 3 columns: image, Grad-CAM, block 5"):
        main(["figure", str(run), "--samples", "3", "-o", str(path), "--titles", "Input"])


def test_no_text_leaves_the_figure_and_no_titles_meet(run: Path) -> None:
    """RenderedSample as Matplotlib measures it, at the width of one column and with many maps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    (sample, _) = read_run(run).datasets[0].samples
    columns = [Column(0, LAYERS[0], f"HiResCAM, all blocks summed, balanced {i}") for i in range(5)]
    figure = paper_figure([[sample]], columns, FigureStyle(width=3.3, font_size=8))
    renderer = FigureCanvasAgg(figure).get_renderer()
    titles = [axes.title.get_window_extent(renderer) for axes in figure.axes if axes.get_title()]
    assert len(titles) == 6 and all(a.x1 <= b.x0 for a, b in itertools.pairwise(titles))
    texts = [*titles, *(text.get_window_extent(renderer) for text in figure.texts)]
    texts += [label.get_window_extent(renderer) for label in figure.axes[-1].get_yticklabels()]
    width, height = figure.bbox.width, figure.bbox.height
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= -1 and box.y1 <= height + 1 for box in texts)


# ------------------------------------------------------------------------------------------------------------- table

MEASURED = """dataset,forgery,method,layer,site,metric,mean,low,high,frames,videos,better,backward
toy,all,hirescam,encoder.layers.5,residual,energy in mask,0.71,0.6,0.8,9,9,yes,balanced
toy,all,hirescam,encoder.layers.5,residual,deletion (blur),0.21,0.1,0.3,9,9,yes,balanced
toy,all,random,,,energy in mask,0.1,0.05,0.15,9,9,,plain
toy,all,random,,,deletion (blur),0.61,,,9,9,,plain
toy,swap_Fake,hirescam,encoder.layers.5,residual,energy in mask,0.99,0.9,1,9,9,yes,balanced
"""


def test_the_table_is_latex_that_says_what_was_measured(tmp_path: Path) -> None:
    (tmp_path / "explanations.csv").write_text(MEASURED)
    out = tmp_path / "table.tex"
    assert main(["table", str(tmp_path), "-o", str(out)]) == 0
    lines = out.read_text().splitlines()
    assert lines[1:4] == [r"\begin{tabular}{lrr}", r"\toprule", r"map & energy in mask & deletion (blur) \\"]
    best = r"hirescam, encoder.layers.5, residual, balanced & \textbf{0.710}$^\dagger$ {\scriptsize [0.600, 0.800]}"
    assert lines[5].startswith(best) and r"\textbf{0.210}" in lines[5]  # lower is better
    assert lines[6] == r"random & 0.100 {\scriptsize [0.050, 0.150]} & 0.610 \\" and "0.990" not in out.read_text()
    assert lines[-1] == r"\end{tabular}" and out.read_text().count("{") == out.read_text().count("}")
    csv_file = tmp_path / "table.csv"
    assert main(["table", str(tmp_path), "-o", str(csv_file), "--metrics", "energy in mask"]) == 0
    assert csv_file.read_text().splitlines()[2] == "random,0.1"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-o", "t.txt"], r"give a file \(\.tex, \.csv\)"),
        (["-o", "t.tex", "--metrics", "energy"], "'energy' was not measured; did you mean 'energy in mask'"),
        (["-o", "t.tex", "--dataset", "to"], "did you mean 'toy'"),
    ],
)
def test_a_table_of_what_is_not_there(
    flags: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="first run test_with_gradcam.py with --evaluate_explanations"):
        main(["table", ".", "--of", "explanations", "-o", "t.tex"])
    Path("explanations.csv").write_text(MEASURED)
    with pytest.raises(InputError, match=said):
        main(["table", ".", *flags])


def test_names_are_escaped_for_latex() -> None:
    assert escaped(r"a_b%{c}\&") == r"a\_b\%\{c\}\textbackslash{}\&"
