"""Coverage-guided fuzzing of the readers, by hand: `python -m tests.fuzz.coverage_guided picture|json -max_total_time=120`.

Needs `pip install atheris`. An exception that is not documented ends it with the input written to `crash-*`. Not part of
`make test`, whose bounded cases are in tests/fuzz/test_fuzz.py.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]  # not installed by default

with atheris.instrument_imports(include=["utils", "PIL", "json"]):
    from utils.gradcam_kit.base.errors import InputError
    from utils.gradcam_kit.data.frame import DataSettings
    from utils.gradcam_kit.data.images import UnreadableImage, decode_image
    from utils.gradcam_kit.data.readers import read_dataset

FOLDER = Path(tempfile.mkdtemp())
SETTINGS = DataSettings(json_folder=FOLDER, label_dict={"r": 0, "f": 1}, frame_num=8)


def image(data: bytes) -> None:
    """Bytes → pixels or UnreadableImage."""
    try:
        pixels = decode_image(data, 32)
    except UnreadableImage:
        return
    assert pixels.shape == (32, 32, 3)


def dataset_json(data: bytes) -> None:
    """Bytes → frames or InputError."""
    (FOLDER / "d.json").write_bytes(data)
    try:
        frames = read_dataset("d", SETTINGS)
    except InputError:
        return
    assert frames


def seeds(kind: str) -> Path:
    """A folder with inputs that are accepted, for the mutations to start from."""
    folder = FOLDER / "seeds"
    folder.mkdir()
    if kind == "picture":
        from tests.fuzz.test_fuzz import SOURCES

        for number, source in enumerate(SOURCES):
            (folder / str(number)).write_bytes(source)
    else:
        (folder / "0").write_text('{"d": {"r": {"test": {"v": {"label": "r", "frames": ["a/0.png", "a\\\\1.png"]}}}}}')
        (folder / "1").write_text(
            '{"d": {"f": {"test": {"v": {"label": "f", "frames": ["\\ud800", "/a/0"]}, "w": {}}}}}'
        )
    return folder


if __name__ == "__main__":
    kind = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if kind not in ("picture", "json"):
        sys.exit(__doc__)
    atheris.Setup([*sys.argv, str(seeds(kind))], image if kind == "picture" else dataset_json)
    atheris.Fuzz()
