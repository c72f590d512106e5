"""A function compiled for arm64 and run under qemu: arrays in, the last array out."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tvm
from tvm.ir import IRModule
from tvm.target import Target

TOOLS = ("aarch64-linux-gnu-gcc", "qemu-aarch64-static", "aarch64-linux-gnu-objdump")
ROOT = "/usr/aarch64-linux-gnu"
OPTIONS = {"tirx.disable_cse_tir": True}
"""As libraries are compiled."""


def missing() -> bool:
    """Whether gcc-aarch64-linux-gnu, libc6-dev-arm64-cross or qemu-user-static are not installed."""
    return not all(map(shutil.which, TOOLS))


class Arm64Program:
    """The function ``matmul`` of ``module``, compiled and linked in ``folder`` with a program that calls it."""

    def __init__(self, folder: Path, module: IRModule, target: Target) -> None:
        self.folder = folder
        prefixed = module.with_attr("system_lib_prefix", "arm64_program_")
        with tvm.transform.PassContext(config=OPTIONS):
            tvm.compile(prefixed, target=target).export_library(str(folder / "kernel.tar"), fcompile=tvm.support.tar.tar)
        with tarfile.open(folder / "kernel.tar") as tar:
            tar.extractall(folder, filter="data")
        compiler, source = shutil.which(TOOLS[0]), Path(__file__).with_name("arm64_call.c")
        command = [str(compiler), "-O1", str(source), str(folder / "lib0.o"), "-o", str(folder / "call"), "-lm"]
        subprocess.run(command, check=True, capture_output=True)

    @property
    def listing(self) -> str:
        """The instructions."""
        command = [TOOLS[2], "-d", str(self.folder / "lib0.o")]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def __call__(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Runs it; of the last array only the type and the shape count.

        Raises:
            AssertionError: the program failed; what it said.
        """
        arguments = []
        for number, array in enumerate(arrays):
            name = self.folder / f"{number}.bin"
            name.write_bytes(np.ascontiguousarray(array).tobytes())
            sizes = "x".join(map(str, array.shape))
            arguments += [f"{array.dtype.kind}{8 * array.dtype.itemsize}", sizes, str(name)]
        command = [TOOLS[1], "-cpu", "neoverse-n1", "-L", ROOT, str(self.folder / "call"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        last = arrays[-1]
        return np.frombuffer((self.folder / f"{len(arrays) - 1}.bin").read_bytes(), last.dtype).reshape(last.shape)
