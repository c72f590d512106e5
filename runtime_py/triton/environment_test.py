"""What the process of a model in Triton must be: its NumPy, and the GPU that it sees."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from runtime_py.errors import MachineError
from runtime_py.triton.environment import THIS_PROGRAM, check_numpy, choose_device


def test_numpy_2_is_refused_under_a_stub_for_numpy_1(tmp_path: Path) -> None:
    old, new, neither = tmp_path / "old", tmp_path / "new", tmp_path / "neither"
    old.write_bytes(b"\x7fELF numpy.core.multiarray")
    new.write_bytes(b"\x7fELF numpy.core.multiarray numpy._core.multiarray")
    with pytest.raises(MachineError, match="NumPy 1"):
        check_numpy("2.4.6", old)
    check_numpy("1.26.4", old)
    check_numpy("2.4.6", new)
    neither.write_bytes(b"\x7fELF that reads no arrays")
    check_numpy("2.4.6", neither)
    check_numpy("2.4.6", tmp_path / "none")
    if sys.platform == "linux":
        assert THIS_PROGRAM.samefile(sys.executable), "what is looked into where nothing is named"


def test_an_instance_sees_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-x")
    choose_device("CPU", "1")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,GPU-x"
    choose_device("GPU", "1")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-x"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 7")
    choose_device("GPU", "0")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 7")
    choose_device("GPU", "1")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    choose_device("GPU", "1")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1", "one that the server itself does not see"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    choose_device("GPU", "2")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
