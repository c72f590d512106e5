"""A TVM that is installed and broken: said so, that a package's graph may answer in its place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tvm_ffi")

ASK = """
from runtime_py.backends.tvm_runtime import tvm_ffi
from runtime_py.errors import MachineError
try:
    tvm_ffi()
except MachineError as error:
    print(error.what)
"""


@pytest.mark.parametrize(
    ("path", "content"),
    [("tvm/lib/libtvm_runtime.so", "no library"), ("tvm_ffi.py", "raise ImportError('libtvm_ffi.so: file too short')")],
)
def test_an_installation_that_cannot_be_loaded_is_an_error_of_the_machine(tmp_path: Path, path: str, content: str) -> None:
    (tmp_path / "tvm" / "lib").mkdir(parents=True)
    (tmp_path / "tvm" / "__init__.py").touch()
    (tmp_path / "tvm" / "lib" / "libtvm_runtime.so").touch()
    (tmp_path / path).write_text(content)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.startswith("TVM's runtime is installed and cannot be loaded: "), done.stderr
