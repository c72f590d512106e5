"""How a failure is printed: what failed, what was expected and found, what to do next; and the exit code it gives.

Every exception ends here. One that is no `EdgeproofError` becomes one: a library that is not installed names the extra that
brings it, what the operating system refuses is a fault of the machine, and anything else is called an internal error.
"""

from __future__ import annotations

import errno
import traceback

from runtime_py.backends.records import BUILT_IN
from runtime_py.command import pages
from runtime_py.command.console import say
from runtime_py.errors import (
    DoesNotFitError,
    EdgeproofError,
    InternalError,
    InterruptedExportError,
    MachineError,
)

EXIT_CODES = """\
exit codes: 0 whole and within tolerance, 1 internal error, 2 usage, 3 unsupported model, 4 does not fit,
5 parity failed, 6 interrupted, 7 environment (docs/cli.md)"""

PART_CHARACTERS, PART_LINES = 2000, 20
"""Longer parts of a message are cut; -vv shows them whole."""

KEPT_END = 300
"""Characters of the end that a cut line keeps."""

EXTRAS = {
    "torch": "export",
    "safetensors": "export",
    "huggingface_hub": "hub",
    "tqdm": "export",
    "psutil": "export",
    "transformers": "dev",
    "shtab": "completions",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "llguidance": "serve",
    "ray": "cluster",
    **{module: record.distributions[0].extra for record in BUILT_IN for module in record.modules},
}
"""Module that may be missing, to the extra of edgeproof that brings it."""

MACHINE = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EMFILE", "ENFILE", "ELOOP", "ENAMETOOLONG")
    if hasattr(errno, name)
)
"""What the operating system refuses whatever the program does; not every system knows every one."""


def report(error: BaseException, verbosity: int = 0) -> int:
    """Print an error on stderr, with its traceback from ``-vv`` on; returns the exit code."""
    if verbosity > 1:
        say("".join(traceback.format_exception(error)).rstrip())
    known = explained(error)
    say(message(known, whole=verbosity > 1))
    for line in pages.where(f"{known.expected} {known.next_step}"):
        say(f"  {line}")
    return int(known.exit_code)


def message(error: EdgeproofError, whole: bool = False) -> str:
    """The three parts, a line each and further lines deeper than these, so that no name can forge a part."""
    parts = [("error: ", error.what), ("  expected: ", error.expected), ("  next: ", error.next_step)]
    return "\n".join(title + _indented(text if whole else cut(text)) for title, text in parts)


def cut(text: str) -> str:
    """A part within `PART_CHARACTERS` and `PART_LINES`, and how much was left out."""
    lines = text.split("\n")
    if len(lines) > PART_LINES:
        text = "\n".join(lines[:PART_LINES]) + f"\n(and {len(lines) - PART_LINES} more lines; -vv shows them)"
    if len(text) > PART_CHARACTERS:
        left_out = len(text) - PART_CHARACTERS
        start, end = text[: PART_CHARACTERS - KEPT_END], text[-KEPT_END:]
        text = f"{start} ... ({left_out:,} characters left out; -vv shows them) ... {end}"
    return text


def _indented(text: str) -> str:
    return "\n    ".join(text.rstrip().split("\n"))


def explained(error: BaseException) -> EdgeproofError:
    """Any exception as one with three parts."""
    if isinstance(error, EdgeproofError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return InterruptedExportError("stopped", "to run to its end", "run the same command again")
    if isinstance(error, ImportError) and (missing := _missing(error)):
        return missing
    if isinstance(error, MemoryError):
        return DoesNotFitError(
            "this machine ran out of memory" + (f": {error}" if str(error) else ""),
            "enough free memory for this work",
            "close other programs, choose a smaller --context or a smaller model, or use a larger machine",
        )
    if isinstance(error, OSError) and error.errno in MACHINE:
        place = "" if error.filename is None else f"{error.filename}: "
        return MachineError(
            f"{place}{error.strerror or error}",
            "a file or folder that can be read and written, on a disk with room",
            "mend its rights, free some space, or name another place",
        )
    return InternalError(
        f"internal error, {type(error).__name__}: {error}",
        "no error here: this is a fault of edgeproof",
        "run the same command again with -vv and report what it prints",
    )


def _missing(error: ImportError) -> MachineError | None:
    """What to install when a module of `EXTRAS` is not there; None for any other failure to import."""
    name = (error.name or "").partition(".")[0]
    if name not in EXTRAS:
        return None
    if isinstance(error, ModuleNotFoundError):
        return MachineError(
            f"{name} is not installed", f"the extra '{EXTRAS[name]}'", f"pip install 'edgeproof[{EXTRAS[name]}]'"
        )
    return MachineError(
        f"{name} cannot be imported: {error}",
        f"a whole installation of the extra '{EXTRAS[name]}'",
        f"install it again: pip install --force-reinstall 'edgeproof[{EXTRAS[name]}]'",
    )
