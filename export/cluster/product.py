"""The product as it is here: a digest of its files, the libraries beside it, and one archive that carries it to a worker."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from export.backends.registry import backends
from runtime_py.errors import MachineError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("runtime_py", "targets", "export", "calibrate", "parity_tests")
NO_PART = ("__pycache__", "laboratory", "end_to_end")
"""Folders of a checkout that no command needs."""

LIBRARIES = ("edgeproof", "numpy", "pillow", "torch")
"""Distributions that matter whatever the backend."""

OWN = "edgeproof"
"""Whose files are compared in place of its version: in a checkout that says nothing."""

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of every file in the archive, so that equal files make equal archives, which Ray uploads once."""


@dataclass(frozen=True)
class Product:
    """What, beside its input, decides what a job gives.

    Attributes:
        digest: SHA-256 over the names and bytes of the product's files, demo checkpoints and goldens among them.
        python: major and minor version.
        libraries: distribution to version; one that is not installed is not there.
    """

    digest: str
    python: str
    libraries: Mapping[str, str]


def library_versions() -> dict[str, str]:
    """Installed distributions that make or run packages, to their versions."""
    names = [*LIBRARIES]
    for backend in backends().values():
        names += [distribution.name for distribution in backend.runtime.distributions]
        names += backend.tools
    versions = {}
    for name in dict.fromkeys(names):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@cache
def here() -> Product:
    """The product and the libraries of this process."""
    libraries = {name: version for name, version in library_versions().items() if name != OWN}
    python = ".".join(platform.python_version_tuple()[:2])
    return Product(digest_of(ROOT), python, libraries)


def files(root: Path) -> list[Path]:
    """What a worker needs of the product under ``root``: every file but tests, in order."""
    names = sorted(path.relative_to(root) for package in PACKAGES for path in (root / package).rglob("*"))
    return [name for name in names if (root / name).is_file() and not _left_out(name)]


def _left_out(name: Path) -> bool:
    test = name.suffix == ".py" and (name.stem.endswith("_test") or name.stem.startswith("test_") or name.stem == "conftest")
    return test or name.suffix == ".pyc" or not set(NO_PART).isdisjoint(name.parts)


def digest_of(root: Path) -> str:
    """SHA-256 over the names and bytes of `files`."""
    digest = hashlib.sha256()
    for name in files(root):
        content = (root / name).read_bytes()
        digest.update(f"{name.as_posix()}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def pack(archive: Path) -> Path:
    """Write `files` as a ZIP file of the same bytes wherever and whenever it is written."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
        for name in files(ROOT):
            entry = zipfile.ZipInfo(name.as_posix(), EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            made.writestr(entry, (ROOT / name).read_bytes())
    return archive


def require_same(asked: Product, found: Product) -> None:
    """Refuse to work on a machine whose results would not be those of the machine that asks.

    Raises:
        MachineError: Python, a library or the product differs; it names each with both versions.
    """
    rows = [("Python", asked.python, found.python)]
    for name in sorted({*asked.libraries, *found.libraries}):
        rows.append((name, asked.libraries.get(name, "none"), found.libraries.get(name, "none")))
    rows.append(("files of edgeproof", asked.digest[:12], found.digest[:12]))
    wrong = [row for row in rows if row[1] != row[2]]
    if wrong:
        raise MachineError(
            f"the worker {platform.node()} has other versions than the machine that asks",
            "; ".join(f"{name} {mine}, found {other}" for name, mine, other in wrong),
            "install the same versions on every machine of the cluster (edgeproof itself is sent along)",
        )
