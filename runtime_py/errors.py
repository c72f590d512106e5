"""The one error hierarchy of edgeproof: what failed, what was expected, what to do next, and an exit code.

It lives here, in the lightest package, so that the runtime can raise it without importing the exporter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import PurePath


class ExitCode(IntEnum):
    """Process exit codes; stable, documented in docs/cli.md."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    UNSUPPORTED = 3
    DOES_NOT_FIT = 4
    PARITY_FAILED = 5
    INTERRUPTED = 6
    ENVIRONMENT = 7


class EdgeproofError(Exception):
    """A failure a person can act on.

    Args:
        what: what failed, with the name of the file, tensor, layer or flag.
        expected: what was expected and what was found instead.
        next_step: what the user does now.
    """

    exit_code = ExitCode.INTERNAL

    def __init__(self, what: str, expected: str, next_step: str) -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.next_step = next_step

    def __reduce__(self) -> tuple[type[EdgeproofError], tuple[str, str, str]]:
        """Errors cross the borders of processes; by itself Python would call the class with ``what`` alone."""
        return type(self), (self.what, self.expected, self.next_step)

    def __str__(self) -> str:
        return f"{self.what}\n  expected: {self.expected}\n  next: {self.next_step}"


class InternalError(EdgeproofError):
    """Anything that should never have happened; a fault of edgeproof itself."""

    exit_code = ExitCode.INTERNAL


class UsageError(EdgeproofError):
    """A flag, path or request that cannot be carried out as asked."""

    exit_code = ExitCode.USAGE


class CheckpointError(UsageError):
    """A checkpoint that is damaged, incomplete, or not what its config says."""


class TooLongError(UsageError):
    """A prompt of more tokens than the model or the package takes."""


class SchemaError(UsageError):
    """A JSON schema that an answer cannot be kept to."""


class ImageError(UsageError):
    """An image that cannot be decoded or is absurdly large."""


class UnsupportedModelError(EdgeproofError):
    """A model that edgeproof recognises as one it does not build, or does not recognise at all."""

    exit_code = ExitCode.UNSUPPORTED


class DoesNotFitError(EdgeproofError):
    """A request whose predicted memory or disk exceeds what the device or this machine has."""

    exit_code = ExitCode.DOES_NOT_FIT


class ParityError(EdgeproofError):
    """A package that does not say what the reference says."""

    exit_code = ExitCode.PARITY_FAILED


class InterruptedExportError(EdgeproofError):
    """An export that stopped half-way and can go on with ``--resume``."""

    exit_code = ExitCode.INTERRUPTED


class MachineError(EdgeproofError):
    """A missing library, a full disk, a read-only folder, a missing device."""

    exit_code = ExitCode.ENVIRONMENT


class PackageError(EdgeproofError):
    """A package whose files differ from its manifest, or that this runtime cannot read."""

    exit_code = ExitCode.ENVIRONMENT


LIKE, NEXT_BEST = 0.6, 0.1
"""How much alike two names are, of 1, where one may be a mistyped form of the other, and by how much less alike than the
likeliest one the others may be."""


def nearest(name: str, known: Iterable[str], count: int = 3, like: float = LIKE) -> list[str]:
    """The known names that a mistyped one may have meant, likeliest first; few or none."""
    from difflib import SequenceMatcher

    def plain(text: str) -> str:
        return text.lower().replace("_", "-")

    alike = [(SequenceMatcher(None, plain(one), plain(name)).ratio(), one) for one in dict.fromkeys(known)]
    best = max((ratio for ratio, _ in alike), default=0.0)
    close = [(ratio, one) for ratio, one in alike if ratio >= max(like, best - NEXT_BEST)]
    return [one for _, one in sorted(close, key=lambda pair: -pair[0])[:count]]


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """The ``next`` part of an error about a name that is not known: the nearest names, else what to do otherwise."""
    near = nearest(name, known)
    return f"did you mean {' or '.join(near)}? {otherwise}" if near else otherwise


def require_utf8(path: PurePath, of: str) -> None:
    """Refuse a path whose bytes are no UTF-8: the libraries that read and write the files behind it take no other.

    Args:
        of: what has the path, for the error.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{of} {path} is no UTF-8", "a path in UTF-8", "rename the folder, or choose another") from error


@contextmanager
def wrap_errors(what: str) -> Iterator[None]:
    """Turn every other exception into an `EdgeproofError` that names ``what``; the exception itself is its cause."""
    try:
        yield
    except EdgeproofError:
        raise
    except MemoryError as error:
        raise MachineError(
            f"{what}: this machine ran out of memory", "memory for the model and its inputs", "send smaller pictures"
        ) from error
    except OSError as error:
        raise MachineError(
            f"{what}: {error}", "a file that can be read, on a disk with room", "mend what it names, then try again"
        ) from error
    except Exception as error:
        raise InternalError(
            f"{what} failed: {type(error).__name__}: {error}",
            "no error here: a fault of the package or of edgeproof",
            "run `python -m runtime_py verify` on the package; if it is whole, report this",
        ) from error
