"""sha256 of the checkpoint's files: read in a thread beside the build, journalled, and confirmed at the end.

A file may change while an export runs or between two runs of one, and keep its size and time of modification. So no step
is entered in the journal before every file's hash is, and a resumed run hashes everything anew and compares. The end of
every run asks for the time of a file's last change (POSIX: ctime), which every write moves and no program can set back.
Where that is not what it was when the hash began, or too young to tell a later write by, the file is hashed again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from export.package.journal import FileRecord, Journal, sha256_of
from export.source import row_threads
from runtime_py.errors import CheckpointError


class _Stopped(Exception):
    """The export ended before the hashes were asked for."""


def stamp(path: Path) -> str:
    """Size and modification time: what shows at once that a file is another one."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


YOUNG = 2_000_000_000
"""Nanoseconds within which two changes may bear one time: file systems keep it in steps of up to two seconds (FAT)."""


def state(path: Path) -> tuple[int, ...] | None:
    """What no write leaves as it is: the file's place, size, and times of modification and of change.

    None where it does not tell: on Windows, whose ``st_ctime`` is the time of creation, and for what changed just now.
    """
    status = path.stat()
    if os.name != "posix" or time.time_ns() - status.st_ctime_ns < YOUNG:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class SourceHashes:
    """Hashes ``files`` (recorded name to path) while the body of a ``with`` runs; `records` waits for the rest."""

    def __init__(self, files: Mapping[str, Path], journal: Journal) -> None:
        self._files, self._journal = dict(files), journal
        self._hashed: dict[str, tuple[tuple[int, ...] | None, FileRecord]] = {}
        """The state of every file before it was hashed, and its record."""
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, "source-hashes")

    def __enter__(self) -> SourceHashes:
        self._future = self._pool.submit(self._all)
        self._busy = row_threads.busy_elsewhere(self._future.running)
        self._busy.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._busy.__exit__(kind, error, trace)
        self._stop.set()
        self._pool.shutdown(wait=True)

    def records(self) -> list[FileRecord]:
        """Wait until every file is hashed.

        Raises:
            CheckpointError: a file is not what it was in an earlier run of this export.
        """
        return self._future.result()

    def confirmed(self) -> list[FileRecord]:
        """The same records, after a second hash of every file whose state does not show that nothing wrote to it.

        Raises:
            CheckpointError: a file changed while the export ran.
        """
        self.records()
        # nothing else is left to do: as many files at a time as there are cores
        return self._all(os.cpu_count() or 1)

    def _all(self, threads: int = 1) -> list[FileRecord]:
        with ThreadPoolExecutor(threads, "source-hash") as pool:
            return list(pool.map(lambda file: self._one(*file), sorted(self._files.items())))

    def _one(self, name: str, path: Path) -> FileRecord:
        now = state(path)
        before, record = self._hashed.get(name, (None, None))
        if record is not None and now is not None and now == before:
            return record
        digest = sha256_of(path, self._check_stopped)
        known = self._journal.source_hash(name)
        if known is None:
            self._journal.remember_source(name, digest)
        elif known != digest:
            raise CheckpointError(
                f"{path} changed while the package was made",
                f"SHA-256 {known[:12]}..., as when the export began; found {digest[:12]}...",
                "let nothing write to the checkpoint, and start over with --force",
            )
        record = FileRecord(name, path.stat().st_size, digest)
        self._hashed[name] = now, record
        return record

    def _check_stopped(self, _: int) -> None:
        if self._stop.is_set():
            raise _Stopped
