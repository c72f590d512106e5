"""Join the phone libraries of packages into the archive that an app links: ``libmodel_android.a``.

    edgeproof static-library PACKAGE [PACKAGE ...] -o libmodel_android.a

``mlc_llm package`` does the same from mlc-package-config.json; this is for builds without it. Every library is checked
for its marker symbol first. For iOS use Xcode's ``libtool -static`` on the unpacked objects: GNU ar does not index Mach-O.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from export.backends.mlc.objects import check_library, members
from export.package.aside import written_in_place
from runtime_py.backends.records import MLC
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, MachineError, PackageError

ARCHIVE = "libmodel_android.a"


def join(packages: list[Path], out: Path) -> Path:
    """Write ``out`` from the Android libraries of ``packages``, with an index and no times or owners.

    Raises:
        PackageError: a package holds no Android library, or one library name comes twice.
        MachineError: there is no ``ar``.
    """
    from runtime_py.package import read

    archiver = shutil.which("ar") or shutil.which("llvm-ar")
    if archiver is None:
        raise MachineError("no ar on this machine", "ar or llvm-ar", "apt install binutils")
    seen: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="mlc-archive-") as scratch:
        files: list[str] = []
        for package in packages:
            opened = read(package)
            block = MLC.block(opened.manifest)
            if not block.get("device_library"):
                raise PackageError(f"{package} holds no phone library", "a package for android", "export it for android")
            tar, name = opened.file(block["device_library"]), block["model_lib"]
            objects = check_library(tar, name)
            if any(item.format != "elf" for item in objects.values()):
                raise PackageError(f"{tar.name} is no Android library", "ELF objects", "see docs/targets/ios.md for iOS")
            if name in seen:
                raise PackageError(f"{name} comes twice", "different libraries", "name each package once")
            seen.add(name)
            for member, data in members(tar).items():
                file = Path(scratch) / f"{len(files)}-{Path(member).name}"
                file.write_bytes(data)
                files.append(str(file))
        partial = Path(scratch) / out.name
        done = subprocess.run([archiver, "rcsD", str(partial), *files], capture_output=True, text=True, check=False)
        if done.returncode:
            raise MachineError(
                f"{archiver} failed: {done.stderr.strip()}", "an archive", "install binutils for arm64 objects"
            )
        with written_in_place(out) as written, partial.open("rb") as whole, written.open("wb") as handle:
            shutil.copyfileobj(whole, handle)
    return out


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Join the phone libraries of packages into the archive that an app links.")
    made.add_argument("packages", nargs="+", type=Path, metavar="PACKAGE", help="folders that export wrote for android")
    made.add_argument(
        "-o",
        "--output",
        type=flags.file_to_write,
        metavar="FILE",
        default=Path(ARCHIVE),
        help=f"the archive; default {ARCHIVE}",
    )
    flags.json_result(made)
    flags.talk(made)
    made.rename("--out", "--output")
    return made


def _run(options: argparse.Namespace) -> int:
    join(options.packages, options.output)
    if options.json:
        console.out_json({"archive": str(options.output), "bytes": options.output.stat().st_size})
    else:
        console.out(str(options.output))
    return ExitCode.OK


COMMAND = Command(parser, _run)


if __name__ == "__main__":
    sys.exit(execute(COMMAND, "python -m export.backends.mlc.static_library"))
