"""What the rungs need beyond Python packages: how to see whether it is there, and one way to install it.

The arm64 side needs no chroot: Debian packages are unpacked into a folder that ``qemu-aarch64-static -L`` uses as its
root, and arm64 wheels of the same versions as this environment's are unpacked beside it.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from parity_tests.laboratory.mlc_ladder.results import CannotRun

DEBIAN = {
    "opencl": ("pocl-opencl-icd", "ocl-icd-libopencl1"),
    "clang": ("clang", "libclang-common-14-dev"),
    "aarch64": ("qemu-user-static", "debootstrap", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"),
}
WHEELS = ("apache-tvm", "apache-tvm-ffi", "numpy", "ml_dtypes", "psutil", "typing_extensions")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
SYSROOT_PACKAGES = "python3,libstdc++6,libgomp1,ca-certificates"
HINT = "run with --install, or see docs/targets/android.md"


def cache() -> Path:
    """Where the arm64 sysroot is kept: $EDGEPROOF_CACHE or ~/.cache/edgeproof."""
    return Path(os.environ.get("EDGEPROOF_CACHE", Path.home() / ".cache" / "edgeproof")) / "aarch64"


def need(program: str) -> str:
    """Path of a program.

    Raises:
        CannotRun: it is not installed.
    """
    path = shutil.which(program)
    if path is None:
        raise CannotRun(f"{program} is not installed; {HINT}")
    return path


def need_pocl() -> None:
    """Raise CannotRun unless pyopencl finds PoCL."""
    try:
        import pyopencl as cl
    except ImportError as error:
        raise CannotRun(f"pyopencl is not installed; {HINT}") from error
    try:
        names = [platform.name for platform in cl.get_platforms()]
    except cl.LogicError:
        names = []
    if not any("Portable" in name for name in names):
        raise CannotRun(f"no PoCL among the OpenCL platforms; {HINT}")


def need_sysroot() -> tuple[Path, Path, Path]:
    """(root, site-packages, python) of the arm64 side.

    Raises:
        CannotRun: it is not there.
    """
    root, site = cache() / "root", cache() / "site"
    pythons = sorted((root / "usr" / "bin").glob("python3.[0-9]*"))
    if not pythons or not (site / "tvm").is_dir():
        raise CannotRun(f"no arm64 sysroot in {cache()}; {HINT}")
    return root, site, pythons[-1]


def install(say: Callable[[str], None]) -> None:
    """Install everything, Debian packages first; needs root and a network.

    Raises:
        CannotRun: a command failed.
    """
    say("installing Debian packages")
    names = sorted({name for group in DEBIAN.values() for name in group})
    _run(["apt-get", "update"])
    _run(["apt-get", "install", "-y", "--no-install-recommends", *names])
    say("installing pyopencl")
    _run([sys.executable, "-m", "pip", "install", "-q", "pyopencl"])
    if not (cache() / "root" / "usr" / "bin").is_dir():
        say("making the arm64 sysroot")
        make_sysroot(cache() / "root")
    if not (cache() / "site" / "tvm").is_dir():
        say("fetching arm64 wheels")
        make_site(cache() / "site", cache() / "root")


def make_sysroot(root: Path) -> None:
    """Unpack a minimal arm64 Debian with Python into ``root`` (about 310 MB); nothing of it is executed here."""
    fresh = root.with_name("root.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    release = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(encoding="utf-8"), re.MULTILINE)
    codename = release[1] if release and mirror_of() else "bookworm"
    fresh.parent.mkdir(parents=True, exist_ok=True)
    _run(
        [
            *("debootstrap", "--arch=arm64", "--foreign", "--variant=minbase", f"--include={SYSROOT_PACKAGES}"),
            *(codename, str(fresh), mirror_of()),
        ]
    )
    for package in sorted((fresh / "var" / "cache" / "apt" / "archives").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(fresh)])
    fresh.replace(root)


def mirror_of() -> str:
    """The Debian mirror that this machine's apt uses."""
    folder = Path("/etc/apt")
    for file in [*sorted(folder.glob("sources.list.d/*")), folder / "sources.list"]:
        if not file.is_file():
            continue
        for line in file.read_text(encoding="utf-8").splitlines():
            match = re.match(r"^(?:URIs:|deb(?: \[[^]]*\])?)\s+(https?://\S+)", line)
            if match and match[1].rstrip("/").endswith("/debian"):
                return match[1]
    raise CannotRun("no Debian mirror in /etc/apt; the arm64 sysroot is made on Debian")


def make_site(site: Path, root: Path) -> None:
    """Unpack arm64 wheels of the versions installed here, for the sysroot's Python."""
    python = sorted((root / "usr" / "bin").glob("python3.[0-9]*"))[-1].name.removeprefix("python")
    wheels = site.with_name("wheels")
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS]
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    _run(
        [
            *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"),
            *("--python-version", python, *platforms, "-d", str(wheels), *pinned),
        ]
    )
    fresh = site.with_name("site.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(fresh)
    fresh.replace(site)
    shutil.rmtree(wheels)


def _run(command: list[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise CannotRun(f"`{' '.join(command[:4])} ...` failed: {(done.stderr or done.stdout).strip()[-400:]}")
