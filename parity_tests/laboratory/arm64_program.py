"""A kernel compiled for arm64 and run under qemu."""

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

from parity_tests.laboratory.kernels import compiled

TOOLS = ("aarch64-linux-gnu-gcc", "qemu-aarch64-static", "aarch64-linux-gnu-objdump")
ROOT = "/usr/aarch64-linux-gnu"


def missing() -> bool:
    """Whether gcc-aarch64-linux-gnu, libc6-dev-arm64-cross or qemu-user-static are not installed."""
    return not all(map(shutil.which, TOOLS))


class Arm64Program:
    """The kernel that is a module's one function, compiled and linked in ``folder`` with a program that calls it.

    Args:
        offset: bytes from a multiple of 64 at which every array begins.
    """

    def __init__(self, folder: Path, module: IRModule, target: Target, offset: int = 0) -> None:
        self.folder = folder
        (kernel,) = (variable.name_hint for variable in module.get_global_vars())
        built = compiled(module.with_attr("system_lib_prefix", "arm64_program_"), target)
        built.export_library(str(folder / "kernel.tar"), fcompile=tvm.support.tar.tar)
        with tarfile.open(folder / "kernel.tar") as tar:
            tar.extractall(folder, filter="data")
        defined = [f"-DKERNEL=__tvm_ffi_{kernel}", f"-DOFFSET={offset}"]
        source, linked = Path(__file__).with_name("arm64_call.c"), ["-o", str(folder / "call"), "-lm"]
        command = [TOOLS[0], "-O1", *defined, str(source), str(folder / "lib0.o"), *linked]
        subprocess.run(command, check=True, capture_output=True)

    @property
    def listing(self) -> str:
        """The instructions."""
        command = [TOOLS[2], "-d", str(self.folder / "lib0.o")]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The arrays as they are after a call.

        Raises:
            AssertionError: the program failed; what it said.
        """
        files, arguments = [self.folder / f"{number}.bin" for number in range(len(arrays))], []
        for file, array in zip(files, arrays, strict=True):
            file.write_bytes(np.ascontiguousarray(array).tobytes())
            sizes = "x".join(map(str, array.shape))
            arguments += [f"{array.dtype.kind}{8 * array.itemsize}", sizes, str(file)]
        command = [TOOLS[1], "-cpu", "neoverse-n1", "-L", ROOT, str(self.folder / "call"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [np.frombuffer(f.read_bytes(), a.dtype).reshape(a.shape) for f, a in zip(files, arrays, strict=True)]
