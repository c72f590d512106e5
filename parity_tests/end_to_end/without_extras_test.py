"""``pip install edgeproof`` alone: what needs no further library answers, and everything else names the extra it misses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BARE = """\
import sys
for name in ("torch", "onnx", "onnxruntime", "onnxscript", "tvm", "tvm_ffi", "tensorrt_rtx", "tensorrt", "transformers",
             "safetensors", "huggingface_hub", "psutil", "tqdm", "shtab", "starlette", "uvicorn", "ray"):
    sys.modules[name] = None  # an import of it fails as if it were not installed
from export.__main__ import edgeproof
edgeproof()
"""


def said(*arguments: str) -> tuple[int, str]:
    """Exit code and output of ``edgeproof`` without any library of an extra."""
    command = [sys.executable, "-c", BARE, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--help",), "usage: edgeproof"),
        (("--version",), "edgeproof"),
        (("targets",), "android-8gb"),
        (("models",), "openbmb/MiniCPM-V"),
        (("export", "--help"), "--precision"),
        (("calibrate", "--help"), "--method"),
        (("parity", "--help"), "--package"),
        (("serve", "--help"), "--slots"),
    ],
)
def test_what_needs_no_library_answers(arguments: tuple[str, ...], expected: str) -> None:
    code, text = said(*arguments)
    assert (code, expected in text) == (0, True), text


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "--model", "minicpm-v", "--weights", "demo", "--target", "cpu"),
        ("export", "--model", "minicpm-v", "--target", "android", "--dry-run"),
        ("calibrate", "--model", "minicpm-v", "--weights", "demo", "--target", "cpu", "-o", "scales"),
    ],
)
def test_what_needs_one_names_its_extra(arguments: tuple[str, ...]) -> None:
    code, text = said(*arguments)
    assert code == 7, text
    assert "pip install 'edgeproof[export]'" in text


def test_a_server_names_its_extra() -> None:
    code, text = said("serve", "--package", "out")
    assert (code, "pip install 'edgeproof[serve]'" in text) == (7, True), text


def test_many_machines_name_their_extra(tmp_path: Path) -> None:
    cell = ("--families", "wemm", "--targets", "cpu", "--precisions", "fp32", "--results", str(tmp_path / "results"))
    code, text = said("parity", "--matrix", "--ray", *cell)
    assert (code, "pip install 'edgeproof[cluster]'" in text) == (7, True), text


def test_a_mistake_is_a_mistake_without_libraries_too() -> None:
    code, text = said("export", "--model", "minicpm-v", "--target", "toaster")
    assert code == 2, text
    assert "toaster" in text
