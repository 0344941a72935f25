"""A host that is too old gets one line saying what is needed."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest
import torch

from utils.gradcam_kit.base import command, packages
from utils.gradcam_kit.base.allowed import PRECISIONS
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.model.load import check_precision


def test_here_nothing_is_too_old() -> None:
    assert packages.outdated_packages() == ""


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"torch": "1.12.0+cu113"}, "torch 2.1 (here is 1.12.0+cu113) or newer"),  # of the hosts' install.sh
        ({"torch": "2.1.0", "opencv-python": "4.5.5.64"}, "opencv-python 4.6 (here is 4.5.5.64) or newer"),
        ({"torch": "2.1.0a0", "transformers": "4.46.0", "numpy": "1.21.5", "opencv-python": "4.6.0.66"}, ""),
        ({"torch": "2.10.0", "transformers": "4.9.2"}, "transformers 4.46 (here is 4.9.2) or newer"),
        ({"torch": "1.2", "numpy": "1.19.5"}, "torch 2.1 (here is 1.2), numpy 1.21 (here is 1.19.5) or newer"),
    ],
)
def test_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: dict[str, str], says: str
) -> None:
    def version(package: str) -> str:
        if package not in found:
            raise importlib.metadata.PackageNotFoundError(package)
        return found[package]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert packages.outdated_packages().endswith(says) and bool(packages.outdated_packages()) == bool(says)
    with pytest.raises(SystemExit) as left:
        command.run_command(lambda arguments: 0)
    error = capsys.readouterr().err
    assert left.value.code == (2 if says else 0) and error == (f"error: this library needs {says}\n" if says else "")


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    assert packages.outdated_packages() == "this library needs Python 3.10 or newer, here is 3.9"


def test_a_torch_without_half_precision_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.1 has no float16 on the CPU: it either leaves autocast off or has no such kernel."""
    cpu = torch.device("cpu")
    for precision in PRECISIONS:
        check_precision(precision, cpu)
    monkeypatch.setattr(torch.nn.functional, "linear", lambda one, weight: one)  # as with autocast left off
    with pytest.raises(InputError, match="precision fp16 on cpu is not available in torch .*; use fp32 or bf16"):
        check_precision("fp16", cpu)

    def no_kernel(one: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")

    monkeypatch.setattr(torch.nn.functional, "linear", no_kernel)
    with pytest.raises(InputError, match="precision fp16: .*not implemented for 'Half'.*; use fp32 or bf16"):
        check_precision("fp16", cpu)


def test_single_precision_asks_nothing_of_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cast then, and autocast on a CPU knows no float32."""

    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("Currently, AutocastCPU only support Bfloat16 as the autocast_cpu_dtype")

    monkeypatch.setattr(torch, "autocast", refuse)
    check_precision("fp32", torch.device("cpu"))
