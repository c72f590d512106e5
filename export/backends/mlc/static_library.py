"""Join the phone libraries of packages into the archive that an app links: ``libmodel_android.a``.

    python -m export.backends.mlc.static_library PACKAGE [PACKAGE ...] -o libmodel_android.a

``mlc_llm package`` does the same from mlc-package-config.json; this is for builds without it. Every library is checked
for its marker symbol first. For iOS use Xcode's ``libtool -static`` on the unpacked objects: GNU ar does not index Mach-O.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from export.backends.mlc.objects import check_library, members
from runtime_py.backends.records import MLC
from runtime_py.errors import EdgeproofError, MachineError, PackageError


def join(packages: list[Path], out: Path) -> Path:
    """Write ``out`` from the Android libraries of ``packages``, with an index and no times or owners.

    Raises:
        PackageError: a package holds no Android library, or one library name comes twice.
        MachineError: there is no ``ar``.
    """
    archiver = shutil.which("ar") or shutil.which("llvm-ar")
    if archiver is None:
        raise MachineError("no ar on this machine", "ar or llvm-ar", "apt install binutils")
    seen: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="mlc-archive-") as scratch:
        files = []
        for package in packages:
            block = MLC.block(json.loads((package / "manifest.json").read_text(encoding="utf-8")))
            if not block.get("device_library"):
                raise PackageError(f"{package} holds no phone library", "a package for android", "export it for android")
            tar, name = package / block["device_library"], block["model_lib"]
            objects = check_library(tar, name)
            if any(item.format != "elf" for item in objects.values()):
                raise PackageError(f"{tar.name} is no Android library", "ELF objects", "see docs/targets/ios.md for iOS")
            if name in seen:
                raise PackageError(f"{name} comes twice", "different libraries", "name each package once")
            seen.add(name)
            for member, data in members(tar).items():
                file = Path(scratch) / f"{name}-{member}"
                file.write_bytes(data)
                files.append(str(file))
        partial = Path(scratch) / out.name
        done = subprocess.run([archiver, "rcsD", str(partial), *files], capture_output=True, text=True, check=False)
        if done.returncode:
            raise MachineError(
                f"{archiver} failed: {done.stderr.strip()}", "an archive", "install binutils for arm64 objects"
            )
        waiting = out.with_name(out.name + ".partial")
        shutil.copyfile(partial, waiting)
    return waiting.replace(out)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m export.backends.mlc.static_library")
    parser.add_argument("packages", nargs="+", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("libmodel_android.a"))
    options = parser.parse_args()
    try:
        join(options.packages, options.out)
    except EdgeproofError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{options.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
