"""Write a built module as a tar of objects or a shared library, with bytes that depend on the module alone."""

from __future__ import annotations

import gzip
import importlib.util
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from export.compilation.host import host_place
from runtime_py.errors import MachineError


def write_objects(built: Any, out: Path) -> None:
    """Export a relax executable to ``out`` through a temporary name; ``.tar`` members carry no time and no owner.

    Raises:
        MachineError: a shared library was asked for and no linker is installed.
    """
    partial = out.with_name(f"{out.stem}.partial{out.suffix}")
    assemble = write_tar if out.suffix == ".tar" else link_shared

    def pack(_path: str, files: list[str], **_options: Any) -> None:
        assemble(partial, sorted((Path(file) for file in files), key=lambda file: file.name))

    pack.output_format = "tar"  # type: ignore[attr-defined]
    built.export_library(str(partial), fcompile=pack)
    partial.replace(out)


def write_tar(path: Path, files: list[Path]) -> None:
    """A gzipped tar of ``files`` under their base names; no times, owners or file name in its headers."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for file in files:
            entry = tarfile.TarInfo(file.name)
            entry.size, entry.mode = file.stat().st_size, 0o644
            with file.open("rb") as handle:
                archive.addfile(entry, handle)


def link_shared(path: Path, files: list[Path]) -> None:
    """One shared library for this machine out of position-independent objects."""
    command = [*linker(), "-shared", "-o", str(path), *map(str, files), "-lm"]  # kernels call libm: exp, erf, cos
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MachineError(
            f"linking {path.name} failed: {done.stderr.strip()[-500:]}",
            f"{command[0]} to link position-independent objects",
            "install gcc, or pip install ziglang",
        )


def linker() -> list[str]:
    """The command of a C compiler to link with: one on the path, or the one in the ziglang wheel."""
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{host_place()}-linux-gnu"]
    raise MachineError(
        "no linker on this machine", "cc, gcc or clang, or the ziglang package", "apt install gcc, or pip install ziglang"
    )
