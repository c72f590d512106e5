"""One export at a time for one output: a lock that the system gives back when its holder dies.

The lock is on the file ``<output>.partial.lock``, which holds the holder's process id and goes with the lock.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from runtime_py.errors import UsageError

try:
    import fcntl
except ImportError:  # a system without flock: two exports at once are then not told apart
    fcntl = None  # type: ignore[assignment]


def lock_of(output: Path) -> Path:
    """The file whose lock an export of ``output`` holds."""
    return output.with_name(f"{output.name}.partial.lock")


@contextlib.contextmanager
def only_one(output: Path) -> Iterator[None]:
    """Hold the lock of ``output``.

    Raises:
        UsageError: another process holds it, or the lock's name is somebody else's file.
    """
    if fcntl is None:
        yield
        return
    path = lock_of(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _acquired(path, output)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def _acquired(path: Path, output: Path) -> int:
    while True:
        # neither through a link, which would have another file written, nor waiting at a pipe of this name
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        try:
            _refuse_strange(path, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip()
            os.close(handle)
            raise UsageError(
                f"another export is writing {output}" + (f" (process {holder})" if holder.isdigit() else ""),
                "one export at a time for one output",
                "wait until it has ended, or choose another -o",
            ) from error
        except BaseException:
            os.close(handle)
            raise
        if _still_named(path, handle):  # else its last holder removed it between our open and our lock
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            return handle
        os.close(handle)


def _refuse_strange(path: Path, handle: int) -> None:
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or not re.fullmatch(rb"\d*\n?", os.pread(handle, 100, 0)):
        raise UsageError(f"{path} is no lock of an export", "no file of this name", "move it away, or choose another -o")


def _still_named(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
