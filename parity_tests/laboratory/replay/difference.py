"""What differs between two packages: bytes per file, keys per JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"
_ABSENT = object()


class FileClass(StrEnum):
    """What a file of a package is to the one who changed the code."""

    GRAPHS = "graphs"
    WEIGHTS = "weights"
    CONFIGS = "configs"
    MANIFEST = "manifest"
    LIBRARIES = "libraries"  # compiled; two builds of the same source need not be equal
    OTHER = "other"


HELD = (FileClass.GRAPHS, FileClass.WEIGHTS)
"""Classes that may not change by accident."""

_BY_ENDING = {
    ".onnx": FileClass.GRAPHS,
    ".onnx_data": FileClass.WEIGHTS,
    ".onnx_data_1": FileClass.WEIGHTS,
    ".bin": FileClass.WEIGHTS,
    ".safetensors": FileClass.WEIGHTS,
    ".so": FileClass.LIBRARIES,
    ".tar": FileClass.LIBRARIES,
    ".a": FileClass.LIBRARIES,
    ".engine": FileClass.LIBRARIES,
    ".json": FileClass.CONFIGS,
    ".jinja": FileClass.CONFIGS,
    ".pbtxt": FileClass.CONFIGS,
}
_WEIGHT_INDEXES = ("tensor-cache.json", "ndarray-cache.json")


@dataclass(frozen=True)
class KeyChange:
    """One key of a JSON file: ``added``, ``removed`` or ``changed``; old and new are None where there is none."""

    key: tuple[str, ...]
    kind: str
    old: Any = None
    new: Any = None


@dataclass(frozen=True)
class FileChange:
    """One file that is not the same on both sides.

    Attributes:
        bytes_changed: bytes that differ at their place, with the difference in length; the whole length of a file that
            only one side has.
        note: ``added``, ``removed``, ``renamed to ...`` or empty.
        keys: of a JSON file, the keys that differ.
    """

    path: str
    file_class: FileClass
    bytes_changed: int
    note: str = ""
    keys: tuple[KeyChange, ...] = ()


@dataclass(frozen=True)
class PackageDifference:
    """Two packages held against each other.

    Attributes:
        files, sizes: number and bytes of the base's files by class, changed or not.
    """

    files: dict[FileClass, int]
    sizes: dict[FileClass, int]
    changes: tuple[FileChange, ...]


def class_of(path: str) -> FileClass:
    """The class of a file by its place in a package."""
    name = PurePosixPath(path).name
    if path == MANIFEST:
        return FileClass.MANIFEST
    if name in _WEIGHT_INDEXES:
        return FileClass.WEIGHTS
    return _BY_ENDING.get(PurePosixPath(path).suffix, FileClass.OTHER)


def compare(base: Path, head: Path) -> PackageDifference:
    """Every file of both packages.

    Raises:
        OSError: a package cannot be read.
    """
    old, new = _files(base), _files(head)
    renamed = _renamed(base, head, old, new)
    changes = []
    for path in sorted(old | new):
        if path not in new:
            note = f"renamed to {renamed[path]}" if path in renamed else "removed"
            count = 0 if path in renamed else (base / path).stat().st_size
            changes.append(FileChange(path, class_of(path), count, note))
        elif path not in old:
            if path not in renamed.values():
                changes.append(FileChange(path, class_of(path), (head / path).stat().st_size, "added"))
        elif count := bytes_changed((base / path).read_bytes(), (head / path).read_bytes()):
            changes.append(FileChange(path, class_of(path), count))
    files: dict[FileClass, int] = dict.fromkeys(FileClass, 0)
    sizes: dict[FileClass, int] = dict.fromkeys(FileClass, 0)
    for path in old:
        files[class_of(path)] += 1
        sizes[class_of(path)] += (base / path).stat().st_size
    elsewhere = {change.path for change in changes} | set(renamed.values())
    return PackageDifference(files, sizes, tuple(_with_keys(change, base, head, elsewhere) for change in changes))


def bytes_changed(old: bytes, new: bytes) -> int:
    """Bytes that differ at their place, and the difference in length."""
    import numpy

    common = min(len(old), len(new))
    differ = numpy.frombuffer(old, numpy.uint8, common) != numpy.frombuffer(new, numpy.uint8, common)
    return int(differ.sum()) + abs(len(old) - len(new))


def key_changes(old: object, new: object, key: tuple[str, ...] = ()) -> Iterator[KeyChange]:
    """The leaves at which two JSON values differ; entries of a list of files are known by their ``path``."""
    old, new = _keyed(old), _keyed(new)
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from key_changes(old.get(name, _ABSENT), new.get(name, _ABSENT), (*key, str(name)))
    elif old is _ABSENT:
        yield KeyChange(key, "added", new=new)
    elif new is _ABSENT:
        yield KeyChange(key, "removed", old=old)
    elif old != new or type(old) is not type(new):
        yield KeyChange(key, "changed", old, new)


def _keyed(value: object) -> object:
    if isinstance(value, list) and value and all(isinstance(item, dict) and "path" in item for item in value):
        return {item["path"]: {name: held for name, held in item.items() if name != "path"} for item in value}
    return value


def _with_keys(change: FileChange, base: Path, head: Path, elsewhere: set[str]) -> FileChange:
    """The change with its JSON keys, without what the manifest says of files that are themselves listed as changed."""
    if change.note or not change.path.endswith(".json"):
        return change
    old, new = (json.loads((side / change.path).read_text(encoding="utf-8")) for side in (base, head))
    keys = [key for key in key_changes(old, new) if not (key.key[0:1] == ("files",) and set(key.key) & elsewhere)]
    return FileChange(change.path, change.file_class, change.bytes_changed, keys=tuple(keys))


def _files(package: Path) -> set[str]:
    return {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}


def _renamed(base: Path, head: Path, old: set[str], new: set[str]) -> dict[str, str]:
    """Files that only their names tell apart, old name to new."""
    arrived = {(head / path).read_bytes(): path for path in sorted(new - old)}
    pairs = {path: arrived.get((base / path).read_bytes()) for path in sorted(old - new)}
    return {path: other for path, other in pairs.items() if other is not None}
