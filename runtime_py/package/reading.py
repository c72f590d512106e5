"""A delivered package: its manifest, and the check of every file against it.

The manifest is read once, held against ``schemas/manifest.schema.json``, and every path that a backend will open must be a
row of its ``files``. Nothing is loaded from a file whose size or hash differs from its row.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runtime_py.backends.registry import named_paths
from runtime_py.contracts import PASSED_ON, StageContract
from runtime_py.errors import PackageError, UsageError, require_utf8
from runtime_py.files import schema
from runtime_py.files.json_file import MEGABYTE, parse_json, read_bytes, shortened
from runtime_py.generation.session import Limits
from runtime_py.package.files import differences as file_differences
from runtime_py.package.files import listed, listed_file, problem
from runtime_py.package.schema_1 import with_storages
from runtime_py.prompt.undeclared import with_prompt

SCHEMA = 2
"""1 is read too: its packages hold no prompt (runtime_py.prompt.undeclared) and other keys (runtime_py.package.schema_1)."""

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 4 * MEGABYTE
"""The largest manifest of a published model is a few hundred kilobytes."""

SHOWN = 20
"""Differences spelled out in one error; the rest are counted."""

ALTERED = "do not use this package; its manifest was altered"
EXPORT_AGAIN = "export the package again"

Depth = Literal["full", "size", "off"]


@dataclass(frozen=True)
class PackagedFile:
    """One file of the manifest; ``path`` is relative to the package with ``/`` between its parts."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Package:
    """A package folder and its manifest.

    Attributes:
        manifest: the whole JSON object, under the keys of the present schema.
        fingerprint: SHA-256 of manifest.json in hex, which stands for the whole package: it holds the hash of every file.
    """

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
    fingerprint: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(file.bytes for file in self.files)

    def file(self, name: str) -> Path:
        """A file of the package, for opening; see `runtime_py.package.files.listed_file`."""
        return listed_file(self.folder, self.manifest, name)


def read(path: str | Path) -> Package:
    """Read ``manifest.json`` of a package folder; no other file is opened.

    Raises:
        UsageError: there is no such folder, or its path is no UTF-8.
        PackageError: no manifest, a damaged one, one of a newer edgeproof, a value out of its range, or a path that is not
            a row of ``files``.
    """
    folder = _folder(path)
    source = folder / MANIFEST
    wrong = problem(folder, MANIFEST)
    if wrong:
        hint = " (an export was cut off; finish it with --resume)" if folder.name.endswith(".partial") else ""
        near = [str(place) for place in _packages_near(folder)]
        raise PackageError(
            f"{folder} has no {MANIFEST} to read{hint}: {wrong}",
            "a package that export finished",
            f"pass {' or '.join(near)}" if near else "export it again",
        )
    content = read_bytes(source, MAX_MANIFEST_BYTES)
    manifest = parse_json(content, source, again="copy or export the package again")
    return parse(folder, manifest, hashlib.sha256(content).hexdigest())


def _packages_near(folder: Path) -> list[Path]:
    """Packages that a folder without one may stand for: those in it, of a Triton repository or of its model; or that around.

    What an export left under a name with an ending (``.partial``, ``.failed``) is none.
    """
    patterns = ("*", "*/1/package", "1/package")
    inside = [place.parent for pattern in patterns for place in folder.glob(f"{pattern}/{MANIFEST}")]
    inside = [place for place in inside if not place.name.endswith((".partial", ".failed"))]
    around = [parent for parent in list(folder.resolve().parents)[:2] if (parent / MANIFEST).is_file()]
    return sorted(inside)[:SHOWN] or around[:1]


def _folder(path: str | Path) -> Path:
    try:
        folder = Path(path)
        is_folder = folder.is_dir()
    except (TypeError, ValueError, OSError) as error:  # ValueError: a null character; OSError: a name longer than any may be
        raise UsageError(f"{shortened(path)} is no path", "the folder of a package", "pass a path") from error
    if not is_folder:
        raise UsageError(f"{folder} is no folder", "a package folder", "pass the folder that export wrote (-o)")
    require_utf8(folder, "the package folder")
    return folder


def parse(folder: Path, manifest: Any, fingerprint: str = "") -> Package:
    """A manifest as a `Package`, after every check that needs no other file."""
    source = folder / MANIFEST
    number = manifest.get("schema") if isinstance(manifest, dict) else None
    if not isinstance(number, int) or isinstance(number, bool):
        raise PackageError(f"{source} names no schema", f"schema {SCHEMA}", EXPORT_AGAIN)
    if number > SCHEMA:
        raise PackageError(
            f"{source} has schema {number}, written by edgeproof {shortened(manifest.get('edgeproof', '?'))}",
            f"schema {SCHEMA} or older",
            "update edgeproof, or export the package with this version",
        )
    problems = schema.load("manifest").problems(manifest) or list(_contradictions(manifest))
    if problems:
        raise PackageError(
            f"{source} is not as schema {number} says:\n  " + "\n  ".join(problems[:SHOWN]),
            "runtime_py/files/schemas/manifest.schema.json",
            EXPORT_AGAIN,
        )
    _refuse_strange_paths(source, manifest)
    if number == 1:
        manifest = with_storages(manifest)
    limits = manifest["limits"]
    return Package(
        folder,
        manifest,
        family=manifest["family"],
        variant=manifest["variant"],
        target=manifest["target"],
        precision=manifest["precision"],
        runtime_backend=manifest["runtime_backend"],
        processor=manifest["processor"],
        runtime=with_prompt(manifest["processor"], manifest["runtime"]) if number == 1 else manifest["runtime"],
        generation=manifest["generation"],
        limits=Limits(limits["context"], limits["prefill_chunk"], limits.get("batch", 1)),
        contracts={stage: StageContract.from_json(value) for stage, value in manifest["contracts"].items()},
        files=tuple(PackagedFile(row["path"], row["bytes"], row["sha256"]) for row in manifest["files"]),
        fingerprint=fingerprint,
    )


def _contradictions(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What each value alone does not show."""
    names = [row["path"] for row in manifest["files"]]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        yield f"files: {twice[0]!r} is there twice"
    if MANIFEST in names:
        yield f"files: {MANIFEST} cannot hold its own hash"
    for stage, contract in manifest["contracts"].items():
        if contract["stage"] != stage:
            yield f"contracts.{stage}: it is the contract of {contract['stage']}"
        for side, name in zip(("inputs", "outputs"), PASSED_ON.get(stage, ()), strict=False):
            if not any(row["name"] == name and row.get("required", True) for row in contract[side]):
                yield f"contracts.{stage}.{side}: no {name!r}"
    for name, block in manifest["backends"].items():
        unknown = sorted(set(block.get("stages", {})) - set(manifest["contracts"])) if isinstance(block, dict) else []
        if unknown:
            yield f"backends.{name}.stages: no contract for {', '.join(unknown)}"


def _refuse_strange_paths(source: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a backend's path that is no row of ``files``, before anything is opened."""
    rows = listed(manifest)
    named = named_paths(manifest)
    for name in (*named.data, *named.code):
        if name not in rows and not any(row.startswith(f"{name}/") for row in rows):
            raise PackageError(
                f"{source} names the file {name!r} for a backend, which is no row of its files",
                "every file that is used to be hashed in the manifest",
                ALTERED,
            )


def verify(package: Package, depth: Depth = "full") -> None:
    """Compare every file with the manifest: ``full`` by size and SHA-256, ``size`` by size alone, ``off`` not at all.

    Raises:
        PackageError: lists every missing, extra, resized and altered file, and every file that a graph refers to and the
            manifest does not list.
    """
    if depth not in ("full", "size", "off"):
        raise UsageError(f"verify {shortened(depth)}", "full, size or off", "choose one of them")
    if depth == "off":
        return
    wrong = differences(package, deep=depth == "full")
    if wrong:
        more = f"\n  and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise PackageError(
            f"{package.folder} differs from its manifest in {len(wrong)} file{'s' * (len(wrong) > 1)}:\n  "
            + "\n  ".join(wrong[:SHOWN])
            + more,
            "the files as export wrote them",
            "copy the package again, or export it again",
        )


def differences(package: Package, deep: bool = True) -> list[str]:
    """One line for every file that is not what the manifest says; hashes are read only with ``deep``."""
    wrong = file_differences(package.folder, package.manifest, {MANIFEST}, deep)
    return wrong or list(_strange_references(package))


def _strange_references(package: Package) -> Iterator[str]:
    from runtime_py.backends.onnx_files import unlisted

    rows = listed(package.manifest)
    for graph in named_paths(package.manifest).graphs:
        for name in unlisted(package.folder / graph, graph, rows):
            yield f"reference: {graph} reads {name!r}, which the manifest does not list"
