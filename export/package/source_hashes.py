"""sha256 of the checkpoint's files: read in a thread beside the build, journalled, and read again at the end.

A file may change while an export runs or between two runs of one, and keep its size and time. So no step is entered in the
journal before every file's hash is, a resumed run hashes everything anew and compares, and so does the end of every run.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from export.package.journal import FileRecord, Journal, sha256_of
from runtime_py.errors import CheckpointError


class _Stopped(Exception):
    """The export ended before the hashes were asked for."""


def stamp(path: Path) -> str:
    """Size and modification time: what shows at once that a file is another one."""
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
        """Wait until every file is hashed.

        Raises:
            CheckpointError: a file is not what it was in an earlier run of this export.
        """
        return self._future.result()

    def confirmed(self) -> list[FileRecord]:
        """Hash every file once more; the same records.

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
        digest = sha256_of(path, self._told)
        known = self._journal.source_hash(name)
        if known is None:
            self._journal.remember_source(name, digest)
        elif known != digest:
            raise CheckpointError(
                f"{path} changed while the package was made",
                f"SHA-256 {known[:12]}..., as when the export began; found {digest[:12]}...",
                "let nothing write to the checkpoint, and start over with --force",
            )
        return FileRecord(name, path.stat().st_size, digest)

    def _told(self, _: int) -> None:
        if self._stop.is_set():
            raise _Stopped
