"""sha256 of the checkpoint's files, read in a thread beside the build; what is hashed is journalled."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from export.package.journal import FileRecord, Journal, sha256_of


class _Stopped(Exception):
    """The export ended before the hashes were asked for."""


def stamp(path: Path) -> str:
    """Size and modification time: what must not change between two runs of one export."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


class SourceHashes:
    """Hashes ``files`` (recorded name to path) while the body of a ``with`` runs; `records` waits for the rest."""

    def __init__(self, files: Mapping[str, Path], journal: Journal) -> None:
        self._files, self._journal = dict(files), journal
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, "source-hashes")

    def __enter__(self) -> SourceHashes:
        self._future = self._pool.submit(self._all)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True)

    def records(self) -> list[FileRecord]:
        """Wait until every file is hashed."""
        return self._future.result()

    def _all(self) -> list[FileRecord]:
        return [self._one(name, path) for name, path in sorted(self._files.items())]

    def _one(self, name: str, path: Path) -> FileRecord:
        key = stamp(path)
        known = self._journal.source_hash(name, key)
        if known is None:
            known = sha256_of(path, self._told)
            self._journal.remember_source(name, key, known)
        return FileRecord(name, path.stat().st_size, known)

    def _told(self, _: int) -> None:
        if self._stop.is_set():
            raise _Stopped
