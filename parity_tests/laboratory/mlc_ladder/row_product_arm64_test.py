"""The product of one row on arm64, by dot-product instructions, run under qemu: the numbers of the x86 kernel."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tvm

from export.backends.mlc.passes.row_product_test import ARM64, OPTIONS, Kernel, product, scheduled, spread

TOOLS = ("aarch64-linux-gnu-gcc", "qemu-aarch64-static", "aarch64-linux-gnu-objdump")
ROOT = "/usr/aarch64-linux-gnu"

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)), reason="needs gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user-static"
)


def built(folder: Path, rows: int, columns: int, dtype: str) -> tuple[Path, Path]:
    """The kernel's object, and a program that calls it."""
    module = scheduled(product(rows, columns, dtype), ARM64).with_attr("system_lib_prefix", "row_product_")
    with tvm.transform.PassContext(config=OPTIONS):
        tvm.compile(module, target=ARM64).export_library(str(folder / "kernel.tar"), fcompile=tvm.support.tar.tar)
    with tarfile.open(folder / "kernel.tar") as tar:
        tar.extractall(folder, filter="data")
    compiler, source = shutil.which(TOOLS[0]), Path(__file__).with_name("arm64_call.c")
    command = [str(compiler), "-O1", str(source), str(folder / "lib0.o"), "-o", str(folder / "call"), "-lm"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "lib0.o", folder / "call"


@pytest.mark.parametrize(
    ("dtype", "rows", "columns"), [("float32", 48, 2304), ("float16", 48, 2304), ("float16", 7, 192), ("float32", 5, 96)]
)
def test_the_sums_are_those_of_the_x86_kernel(tmp_path: Path, rows: int, columns: int, dtype: str) -> None:
    """Both add up the same integers; what differs is the order in which groups are added."""
    object_file, program = built(tmp_path, rows, columns, dtype)
    listing = subprocess.run([TOOLS[2], "-d", str(object_file)], check=True, capture_output=True, text=True).stdout
    assert "sdot" in listing and "udot" in listing
    kernel, x = Kernel(rows, columns, dtype), spread(columns, dtype)
    arrays = (x, kernel.matrix.words, kernel.matrix.scales, np.zeros(rows, np.float32))
    names = [tmp_path / f"{number}.bin" for number in range(len(arrays))]
    for name, array in zip(names, arrays, strict=True):
        name.write_bytes(np.ascontiguousarray(array).tobytes())
    sizes = [str(rows), str(columns), str(8 * np.dtype(dtype).itemsize)]
    command = [
        TOOLS[1],
        "-cpu",
        "neoverse-n1",
        "-L",
        ROOT,
        str(program),
        *sizes,
        *map(str, names),
        str(tmp_path / "out.bin"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    got = np.frombuffer((tmp_path / "out.bin").read_bytes(), np.float32)
    size = np.abs(kernel.matrix.stands_for) @ np.abs(x.astype(np.float64))
    assert (np.abs(got - kernel(x)) / size).max() < 5e-7
