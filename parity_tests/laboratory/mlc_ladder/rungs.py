"""The seven rungs; each returns a result or raises CannotRun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from parity_tests.laboratory.mlc_ladder import environment
from parity_tests.laboratory.mlc_ladder.case import Case, make_case
from parity_tests.laboratory.mlc_ladder.results import CannotRun, RungResult, Status, compare
from runtime_py.backends.records import MLC
from runtime_py.errors import PackageError

ROOT = Path(__file__).resolve().parents[3]
GOLDENS = ROOT / "parity_tests" / "goldens"
DEMO = ROOT / "export" / "demo" / "checkpoints" / "minicpm-v"
QEMU_CPU = "neoverse-n1"
CLANG = (
    *("-x", "cl", "-cl-std=CL2.0", "-target", "spir64-unknown-unknown", "-fsyntax-only"),
    *("-Xclang", "-finclude-default-header", "-Xclang", "-cl-ext=+cl_khr_fp16"),
)


class Ladder:
    """Holds what the rungs share: the prepared case, and the x86-64 outputs that later rungs compare with."""

    def __init__(self, checkpoint: Path, package: Path | None, folder: Path) -> None:
        self.checkpoint, self.package, self.folder = checkpoint, package, folder
        self._case: Case | None = None
        self._host: dict[str, np.ndarray] | None = None

    @property
    def case(self) -> Case:
        if self._case is None:
            target = self.folder / "case"
            target.mkdir()
            self._case = make_case(self.checkpoint, target)
        return self._case

    def host_outputs(self) -> dict[str, np.ndarray]:
        if self._host is None:
            self.case.library("host")
            self._host = self.outputs("host", [sys.executable])
        return self._host

    def outputs(self, mode: str, python: list[str], environment_: dict[str, str] | None = None) -> dict[str, np.ndarray]:
        """Run the case in a process of its own and read what it wrote."""
        command = [*python, "-m", "parity_tests.laboratory.mlc_ladder.run_case", str(self.case.folder), mode]
        where = {**os.environ, "PYTHONPATH": str(ROOT), "TVM_NUM_THREADS": "1", **(environment_ or {})}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=where, cwd=ROOT)
        if done.returncode:
            raise PackageError(f"{mode} run failed: {done.stderr.strip()[-1500:]}", "outputs", "report this model")
        with np.load(self.case.folder / f"outputs-{mode}.npz") as outputs:
            return dict(outputs)

    # the rungs

    def quantiser(self) -> RungResult:
        from parity_tests.golden.mlc_golden import check

        results = check(GOLDENS / "mlc-llama")
        wrong = [result.name for result in results if result.status != "pass"]
        detail = f"{len(results)} comparisons, all equal" if not wrong else "differs: " + ", ".join(wrong)
        return RungResult("quantiser", Status.FAIL if wrong else Status.PASS, detail)

    def host(self) -> RungResult:
        from parity_tests.laboratory.mlc_ladder.reference import reference_outputs

        outputs = self.host_outputs()
        return compare("host", reference_outputs(self.case, outputs), outputs)

    def opencl(self) -> RungResult:
        environment.need_pocl()
        self.case.library("opencl")
        return compare("opencl", self.host_outputs(), self.outputs("opencl", [sys.executable]))

    def clang(self) -> RungResult:
        compiler = environment.need("clang")
        tar = self.tar("android")
        source = opencl_source(tar)
        kernels = source.count("// Function: ")
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "kernels.cl"
            file.write_text(source, encoding="utf-8")
            done = subprocess.run([compiler, *CLANG, str(file)], capture_output=True, text=True, check=False)
        if done.returncode:
            return RungResult("clang", Status.FAIL, done.stderr.strip()[-800:])
        half = "float16" if "half" in source else "no float16"
        return RungResult("clang", Status.PASS, f"{kernels} kernels of {tar.name} compile ({half})", {"kernels": kernels})

    def aarch64(self) -> RungResult:
        return self._emulated("aarch64")

    def arm64_host(self) -> RungResult:
        return self._emulated("arm64_host")

    def _emulated(self, mode: str) -> RungResult:
        compiler, qemu = environment.need("aarch64-linux-gnu-gcc"), environment.need("qemu-aarch64-static")
        root, site, python = environment.need_sysroot()
        link_library(compiler, self.case.library(mode), self.case.folder / f"{mode}.so")
        cpu_information(root)
        emulated = [qemu, "-cpu", QEMU_CPU, "-L", str(root), str(python)]
        where = {
            "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
            "TVM_USE_RUNTIME_LIB": "1",
            "PYTHONHOME": str(root / "usr"),
        }
        return compare(mode, self.host_outputs(), self.outputs(mode, emulated, where))

    def structure(self) -> RungResult:
        from export.backends.mlc.objects import check_library

        expected = {"android": ("elf", "aarch64"), "ios": ("mach-o", "arm64")}
        lines = []
        for place in self.places():
            tar = self.tar(place)
            objects = check_library(tar, self.model_lib())
            if sorted(objects) != ["devc.o", "lib0.o"] and len(objects) != 2:
                return RungResult("structure", Status.FAIL, f"{tar.name} holds {sorted(objects)}, not two objects")
            kinds = {(item.format, item.machine) for item in objects.values()}
            if kinds != {expected[place]}:
                return RungResult("structure", Status.FAIL, f"{tar.name} is {kinds}, not {expected[place]}")
            lines.append(
                f"{place}: {len(objects)} {' '.join(expected[place])} objects, marker found, only TVMFFI* undefined"
            )
        return RungResult("structure", Status.PASS, "; ".join(lines))

    # the shipped libraries

    def places(self) -> list[str]:
        return (
            [self.block()["device_library"].rpartition("-")[2].removesuffix(".tar")] if self.package else ["android", "ios"]
        )

    def block(self) -> dict[str, str]:
        assert self.package is not None
        return dict(MLC.block(json.loads((self.package / "manifest.json").read_text(encoding="utf-8"))))

    def model_lib(self) -> str:
        return self.block()["model_lib"] if self.package else self.shipped().parts.model_lib

    def shipped(self) -> Case:
        """A q4f16_1 case of the checkpoint, whose libraries stand for the shipped ones when no package is given."""
        if not hasattr(self, "_shipped"):
            target = self.folder / "shipped"
            target.mkdir()
            self._shipped = make_case(self.checkpoint, target, "q4f16_1")
        return self._shipped

    def tar(self, place: str) -> Path:
        if self.package:
            path = self.package / self.block()["device_library"]
            if place not in self.places():
                raise CannotRun(f"{self.package} holds no {place} library")
            return path
        from export.backends.mlc.compile_process import compile_apart

        path = self.shipped().folder / f"{place}.tar"
        if not path.exists():
            compile_apart(self.shipped().parts.request(), place, path)
        return path


RUNGS: dict[str, Callable[[Ladder], RungResult]] = {
    name: getattr(Ladder, name) for name in ("quantiser", "host", "opencl", "clang", "aarch64", "arm64_host", "structure")
}
"""In order, cheapest set-up first."""


def opencl_source(tar: Path) -> str:
    """The OpenCL C text inside a library tar.

    Raises:
        PackageError: there is none.
    """
    from export.backends.mlc.objects import members

    for data in members(tar).values():
        at = data.find(b"// Function: ")
        if at >= 0:
            return data[(begin := text_start(data, at)) : begin + int.from_bytes(data[begin - 8 : begin], "little")].decode()
    raise PackageError(f"{tar.name} holds no OpenCL source", "device code as text", "use an Android library")


def text_start(data: bytes, inside: int) -> int:
    """Where the text around ``inside`` begins: after a 64-bit length that keeps it within the object."""
    for begin in range(inside, 8, -1):
        length = int.from_bytes(data[begin - 8 : begin], "little")
        if inside < begin + length <= len(data):
            return begin
    raise PackageError("device code without its length", "TVM's device module", "use a library of this version")


def link_library(compiler: str, tar: Path, out: Path) -> None:
    """Link the objects of a library's tar into one arm64 shared object."""
    from export.backends.mlc.objects import members

    with tempfile.TemporaryDirectory() as scratch:
        files = []
        for name, data in members(tar).items():
            file = Path(scratch) / name
            file.write_bytes(data)
            files.append(str(file))
        done = subprocess.run(
            [compiler, "-shared", "-o", str(out), *files, "-lm"], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise PackageError(
            f"linking {tar.name} failed: {done.stderr.strip()[-500:]}", "position-independent objects", "report this"
        )


def cpu_information(root: Path) -> None:
    """Give the sysroot an arm64 /proc/cpuinfo, which libraries read to choose instructions."""
    path = root / "proc" / "cpuinfo"
    path.parent.mkdir(exist_ok=True)
    entry = "processor\t: {}\nFeatures\t: fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimdrdm asimddp\n"
    entry += "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n\n"
    path.write_text("".join(entry.format(number) for number in range(2)), encoding="utf-8")
