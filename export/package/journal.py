"""What an export has finished, so that a killed one resumes: ``<output>.partial/journal.json``.

A step is entered only after its files are on the disk (fsync), with their sizes and sha256. The journal itself is
replaced by rename. On resume a step counts only while its files still match; everything else in the folder is removed.
While the package is checked the journal lies beside the folder. ``journal.schema.json`` describes the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from export.package.aside import sync_file, sync_folder, written_aside
from runtime_py.errors import UsageError
from runtime_py.files.json_file import MEGABYTE, read_json
from runtime_py.files.schema import Schema

NAME = "journal.json"
CHUNK = 1 << 19
"""Bytes hashed at a time: they stay in a core's own cache between being read and being hashed."""

MAX_BYTES = 16 * MEGABYTE
SHOWN = 3
"""Keys of an object in which two exports differ that an error spells out."""


@dataclass(frozen=True)
class FileRecord:
    """One file: path relative to its folder with ``/``, size in bytes, sha256 in hex."""

    path: str
    bytes: int
    sha256: str


def sha256_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """sha256 of a file in hex; ``progress`` gets the size of each block read."""
    digest, block = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as handle:
        while count := handle.readinto(block):
            digest.update(block[:count])
            if progress is not None:
                progress(count)
    return digest.hexdigest()


def record_file(folder: Path, path: Path) -> FileRecord:
    """The record of ``folder / path``."""
    whole = folder / path
    return FileRecord(path.as_posix(), whole.stat().st_size, sha256_of(whole))


def write_json(path: Path, value: Any) -> None:
    """Write JSON through a temporary name, on the disk before it gets its own."""
    write_bytes(path, (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file through a temporary name, on the disk before it gets its own."""
    with written_aside(path) as aside:
        aside.write_bytes(content)
    sync_folder(path.parent)


class Journal:
    """The journal of one partial package.

    Args:
        folder: the partial package.
        fingerprint: what decides the bytes of the package; a resume under another fingerprint is refused.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any]) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._fingerprint = json.loads(json.dumps(fingerprint))
        self._steps: dict[str, list[FileRecord]] = {}
        self._source: dict[str, str] = {}
        self.replaced: str | None = None
        """Name, beside the folder, of the package that this export is about to replace."""

    @property
    def path(self) -> Path:
        return self.folder / NAME

    @property
    def aside(self) -> Path:
        """Where the journal lies while the folder must hold the package alone."""
        return self.folder.with_name(f"{self.folder.name}.{NAME}")

    @property
    def steps(self) -> Mapping[str, list[FileRecord]]:
        """Finished steps and their files, in the order they finished."""
        return self._steps

    def files(self) -> list[FileRecord]:
        """All files of all finished steps."""
        return [record for records in self._steps.values() for record in records]

    def begin(self) -> None:
        """Write an empty journal into a new folder.

        Raises:
            UsageError: the journal's place beside the folder holds another file.
        """
        self._stored(self.aside)
        self.aside.unlink(missing_ok=True)
        self._write()

    def set_aside(self) -> None:
        """Move the journal out of the folder, so that the folder is the package and nothing else."""
        self.path.replace(self.aside)

    def remove(self) -> None:
        """Remove the journal, wherever it lies; the export is over."""
        self.aside.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def resume(self) -> list[str]:
        """Read the journal of an earlier run; keep the steps whose files still match, remove every other file.

        Returns:
            the names of the steps that are kept.

        Raises:
            UsageError: that run had another request or another checkpoint, or the journal is none.
        """
        if os.path.lexists(self.aside):
            self._stored(self.aside)
            if self.path.exists():
                self.aside.unlink()
            else:
                self.aside.replace(self.path)
        stored = self._stored(self.path)
        different = self._different(stored)
        if different:
            differences = "; ".join(
                _told(key, stored["fingerprint"].get(key), self._fingerprint.get(key)) for key in different
            )
            raise UsageError(
                f"{self.folder} was begun by another export",
                f"the same request and checkpoint; different are {differences}",
                "give the flags of that export again, or start over with --force",
            )
        self._source, self.replaced = dict(stored["source"]), stored.get("replaced")
        for name, rows in stored["steps"].items():
            records = [FileRecord(**row) for row in rows]
            if all(self._matches(record) for record in records):
                self._steps[name] = records
        self._remove_strangers()
        self._write()
        return list(self._steps)

    def finish(self, step: str, paths: list[Path]) -> None:
        """Enter a step whose files (relative to the folder) are complete."""
        for path in paths:
            sync_file(self.folder / path)
        for parent in {(self.folder / path).parent for path in paths}:
            sync_folder(parent)
        records = [record_file(self.folder, path) for path in sorted(paths)]
        with self._lock:
            self._steps[step] = records
        self._write()

    def finished(self) -> bool:
        """Whether the journal aside is of this very export, whose folder is gone: it got its name and was then cut off."""
        if self.folder.exists() or not self.aside.is_file():
            return False
        stored = self._stored(self.aside)
        self.replaced = stored.get("replaced")
        return not self._different(stored)

    def source_hash(self, key: str) -> str | None:
        """The sha256 that a checkpoint file had when it was first hashed."""
        with self._lock:
            return self._source.get(key)

    def remember_source(self, key: str, sha256: str) -> None:
        """Enter the sha256 of a checkpoint file."""
        with self._lock:
            self._source[key] = sha256
        self._write()

    def remember_replaced(self, old: Path) -> None:
        """Enter the name that the package to be replaced gets."""
        self.replaced = old.name
        self._write()

    def _stored(self, path: Path) -> dict[str, Any]:
        """A journal of an earlier run; an empty one where there is none, as after a kill before the first was written."""
        if not os.path.lexists(path):
            return {"fingerprint": self._fingerprint, "steps": {}, "source": {}}
        stored = read_journal(path)
        if stored is None:
            raise UsageError(
                f"{path} is no journal of an export", "the file as it was written", "move its folder away, and start over"
            )
        return stored

    def _different(self, stored: Mapping[str, Any]) -> list[str]:
        """Keys of the fingerprint in which an earlier run was another."""
        then, now = stored["fingerprint"], self._fingerprint
        return sorted(key for key in {*then, *now} if then.get(key) != now.get(key))

    def _matches(self, record: FileRecord) -> bool:
        whole = self.folder / record.path
        return (
            not whole.is_symlink()
            and whole.is_file()
            and whole.stat().st_size == record.bytes
            and sha256_of(whole) == record.sha256
        )

    def _remove_strangers(self) -> None:
        """Remove every file that no finished step made: what a cut-off step left behind."""
        known = {record.path for record in self.files()} | {NAME}
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(self.folder).as_posix() not in known:
                path.unlink()

    def _write(self) -> None:
        with self._lock:
            steps = {name: [asdict(record) for record in records] for name, records in self._steps.items()}
            value = {"fingerprint": self._fingerprint, "steps": steps, "source": self._source, "replaced": self.replaced}
            write_json(self.aside if self.aside.exists() else self.path, value)


def read_journal(path: Path) -> dict[str, Any] | None:
    """A journal's object, or None where the file is missing or of another form."""
    if path.is_symlink() or not path.is_file():
        return None
    try:
        value = read_json(path, MAX_BYTES, UsageError)
    except UsageError:
        return None
    return value if not _schema().problems(value) else None


@cache
def _schema() -> Schema:
    return Schema(json.loads(Path(__file__).with_name("journal.schema.json").read_text(encoding="utf-8")))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _told(key: str, then: Any, now: Any) -> str:
    """A key of two fingerprints; of objects their own keys that differ, for both may begin alike."""
    if isinstance(then, dict) and isinstance(now, dict):
        inner = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
        told = [_told(f"{key} {name}", then.get(name), now.get(name)) for name in inner[:SHOWN]]
        return "; ".join(told) + (f" and {len(inner) - SHOWN} more" if len(inner) > SHOWN else "")
    return f"{key}: {_short(then)} then, {_short(now)} now"
