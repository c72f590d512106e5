"""A delivered package: its manifest, and the check of every file against it.

Nothing is loaded from a file whose size or hash differs from what the manifest says, and no path of a manifest leaves
the package folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from runtime_py.contracts import StageContract
from runtime_py.errors import PackageError, UsageError
from runtime_py.generation.session import Limits
from runtime_py.prompt.undeclared import with_prompt
from runtime_py.schema_1 import with_storages

SCHEMA = 2
"""1 is read too: its packages hold no prompt (runtime_py.prompt.undeclared) and other keys (runtime_py.schema_1)."""

MANIFEST = "manifest.json"
SHOWN = 20
"""Differences spelled out in one error; the rest are counted."""

Depth = Literal["full", "size", "off"]


@dataclass(frozen=True)
class PackagedFile:
    """One file of the manifest; ``path`` is relative to the package with ``/`` between its parts."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Package:
    """A package folder and its manifest; ``manifest`` is the whole JSON object, under the keys of the present schema."""

    folder: Path
    manifest: Mapping[str, Any]
    family: str
    variant: str
    target: str
    precision: str
    runtime_backend: str
    processor: str
    runtime: Mapping[str, Any]
    generation: Mapping[str, Any]
    limits: Limits
    contracts: Mapping[str, StageContract]
    files: tuple[PackagedFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(file.bytes for file in self.files)


def read(path: str | Path) -> Package:
    """Read ``manifest.json`` of a package folder; no other file is opened.

    Raises:
        UsageError: there is no such folder.
        PackageError: no manifest, a damaged one, one of a newer edgeproof, or a path that leaves the folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", "a package folder", "pass the folder that export wrote (-o)")
    source = folder / MANIFEST
    if not source.is_file():
        hint = " (an export was cut off; finish it with --resume)" if folder.name.endswith(".partial") else ""
        raise PackageError(f"{folder} has no {MANIFEST}{hint}", "a package that export finished", "export it again")
    try:
        manifest = json.loads(source.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PackageError(f"{source} is not JSON: {error}", "a JSON object", "copy or export the package again") from error
    return parse(folder, manifest)


def parse(folder: Path, manifest: Any) -> Package:
    """Check a manifest's schema and shape."""
    source = folder / MANIFEST
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if not isinstance(schema, int):
        raise PackageError(f"{source} names no schema", f"schema {SCHEMA}", "export the package again")
    if schema > SCHEMA:
        raise PackageError(
            f"{source} has schema {schema}, written by edgeproof {manifest.get('edgeproof', '?')}",
            f"schema {SCHEMA} or older",
            "update edgeproof, or export the package with this version",
        )
    try:
        if schema == 1:
            manifest = with_storages(manifest)
        limits = manifest["limits"]
        files = tuple(
            PackagedFile(_inside(row["path"], source), int(row["bytes"]), str(row["sha256"])) for row in manifest["files"]
        )
        return Package(
            folder,
            manifest,
            family=str(manifest["family"]),
            variant=str(manifest["variant"]),
            target=str(manifest["target"]),
            precision=str(manifest["precision"]),
            runtime_backend=str(manifest["runtime_backend"]),
            processor=str(manifest["processor"]),
            runtime=with_prompt(str(manifest["processor"]), manifest["runtime"]) if schema == 1 else manifest["runtime"],
            generation=manifest["generation"],
            limits=Limits(int(limits["context"]), int(limits["prefill_chunk"]), int(limits.get("batch", 1))),
            contracts={stage: StageContract.from_json(value) for stage, value in manifest["contracts"].items()},
            files=files,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackageError(
            f"{source} is incomplete: {type(error).__name__} {error}",
            f"every key of schema {schema}",
            "export the package again",
        ) from error


def _inside(path: str, source: Path) -> str:
    """``path`` itself, after making sure that it stays in the package folder."""
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0] or "\\" in path or "\0" in path:
        raise PackageError(
            f"{source} names the file '{path}'",
            "paths inside the package",
            "do not use this package; its manifest was altered",
        )
    return path


def verify(package: Package, depth: Depth = "full") -> None:
    """Compare every file with the manifest: ``full`` by size and SHA-256, ``size`` by size alone, ``off`` not at all.

    Raises:
        PackageError: lists every missing, extra, resized and altered file.
    """
    if depth not in ("full", "size", "off"):
        raise UsageError(f"verify '{depth}'", "full, size or off", "choose one of them")
    if depth == "off":
        return
    wrong = differences(package, deep=depth == "full")
    if wrong:
        more = f"\n  and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise PackageError(
            f"{package.folder} differs from its manifest in {len(wrong)} files:\n  " + "\n  ".join(wrong[:SHOWN]) + more,
            "the files as export wrote them",
            "copy the package again, or export it again",
        )


def differences(package: Package, deep: bool = True) -> list[str]:
    """One line for every file that is not what the manifest says; hashes are read only with ``deep``."""
    root = package.folder.resolve()
    wrong = []
    for file in package.files:
        path = package.folder / file.path
        if not path.is_file():
            wrong.append(f"missing: {file.path}")
        elif not path.resolve().is_relative_to(root):
            wrong.append(f"link that leaves the package: {file.path}")
        elif (found := path.stat().st_size) != file.bytes:
            wrong.append(f"size: {file.path} has {found} bytes, not {file.bytes}")
        elif deep and (digest := sha256(path)) != file.sha256:
            wrong.append(f"content: {file.path} has SHA-256 {digest[:12]}..., not {file.sha256[:12]}...")
    known = {file.path for file in package.files} | {MANIFEST}
    found_paths = (path for path in package.folder.rglob("*") if not path.is_dir())
    extra = sorted(path.relative_to(package.folder).as_posix() for path in found_paths)
    return wrong + [f"extra: {name}" for name in extra if name not in known]


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read a chunk at a time."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
