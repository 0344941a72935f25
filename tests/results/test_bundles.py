"""--bundle: what is packed is what was there, through kills and damage, and everything that reads a run still does."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.fake_run import some_rows, write_run
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.exports.formats import write_strips
from utils.gradcam_kit.report.paper import original
from utils.gradcam_kit.run.exports import ExportOptions, check_exports, lacks_exports, write_exports
from utils.gradcam_kit.store import bundles
from utils.gradcam_kit.store.bundles import bundled_samples, bundles_of, pack_samples
from utils.gradcam_kit.store.read_run import all_samples, read_run, sample_maps
from utils.gradcam_kit.store.sample_folder import sample_folders


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("sample*/**/*") if path.is_file()}


def packed(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for bundle in bundles_of(folder):
        with zipfile.ZipFile(bundle) as file:
            assert file.testzip() is None
            found |= {name: file.read(name) for name in file.namelist()}
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", some_rows(tmp_path))


def test_every_byte_is_packed_a_few_samples_to_a_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "PER_BUNDLE", 7)
    folder = run / "faces"
    before = contents(folder)
    pack_samples(folder, sample_folders(folder))
    assert [path.name for path in bundles_of(folder)] == ["samples_0.zip", "samples_1.zip", "samples_2.zip"]
    assert packed(folder) == before and sample_folders(folder) == []


def test_a_bundled_run_reads_as_the_unbundled_one(run: Path) -> None:
    before = read_run(run)
    maps = [sample_maps(sample, before.layers) for data in before.datasets for sample in data.samples]
    images = [original(sample) for data in before.datasets for sample in data.samples]
    for data in before.datasets:
        pack_samples(data.folder, sample_folders(data.folder))
    after = read_run(run)
    assert [data.explained for data in after.datasets] == [data.explained for data in before.datasets]
    samples = [sample for data in after.datasets for sample in data.samples]
    assert [s.to_json() for s in samples] == [s.to_json() for data in before.datasets for s in data.samples]
    assert not any(sample.lost for sample in samples)
    for sample, of_sample, image in zip(samples, maps, images, strict=True):
        for layer, values in sample_maps(sample, after.layers).items():
            np.testing.assert_array_equal(values, of_sample[layer])
        np.testing.assert_array_equal(original(sample), image)
    assert len(write_strips(after.datasets[0])) == 9


def test_a_kill_at_any_moment_loses_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after a bundle is whole and some of its folders are gone, the next call finishes."""
    monkeypatch.setattr(bundles, "PER_BUNDLE", 7)
    folder = run / "faces"
    before = contents(folder)
    removed: list[Path] = []

    def stop_at_the_fifth(path: Path) -> None:
        if len(removed) == 4:
            raise KeyboardInterrupt
        removed.append(path)
        for file in sorted(path.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        path.rmdir()

    with monkeypatch.context() as patched:
        patched.setattr(bundles.shutil, "rmtree", stop_at_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            pack_samples(folder, sample_folders(folder))
    assert len(all_samples(folder)) == 18 and len(sample_folders(folder)) == 14
    pack_samples(folder, sample_folders(folder))
    assert packed(folder) == before and sample_folders(folder) == [] and len(bundled_samples(folder)) == 18


def test_exports_pack_first_and_know_when_it_is_done(run: Path) -> None:
    options = ExportOptions(bundle=True)
    assert lacks_exports(run, options)
    write_exports(run, options)
    assert not lacks_exports(run, options) and not sample_folders(run / "faces")
    page = (run / "index.html").read_text()
    assert '"bundle": "samples_0.zip"' in page and (run / "faces" / "page_data" / "0.js").is_file()


@pytest.mark.parametrize("keep", [0, 100, -300])
def test_a_damaged_bundle_is_samples_that_are_lost(run: Path, keep: int) -> None:
    folder = run / "faces"
    pack_samples(folder, sample_folders(folder))
    bundle = folder / "samples_0.zip"
    bundle.write_bytes(bundle.read_bytes()[:keep])
    data = read_run(run).datasets[0]
    assert data.samples == [] and data.explained == 0


def test_a_damaged_entry_is_one_sample_that_is_lost(run: Path) -> None:
    folder = run / "faces"
    pack_samples(folder, sample_folders(folder))
    bundle = folder / "samples_0.zip"
    data = bytearray(bundle.read_bytes())
    place = data.index(b'"prob_fake"')
    data[place : place + 4] = b"\0\0\0\0"
    bundle.write_bytes(data)
    lost = [sample.lost for sample in read_run(run).datasets[0].samples]
    assert sum(map(bool, lost)) == 1 and "damaged" in "".join(lost)


def test_fiftyone_needs_files_of_their_own() -> None:
    with pytest.raises(InputError, match="--bundle and --fiftyone exclude each other"):
        check_exports(ExportOptions(bundle=True, fiftyone=True))
