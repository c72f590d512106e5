"""Flags that are spelt alike and mean the same in every program."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

from runtime_py.backends.registry import runtime_backends
from runtime_py.errors import MachineError, UsageError
from runtime_py.files.json_file import MEGABYTE, read_bytes
from runtime_py.hub.room import existing_parent

RANDOM_SEED = -1
SEEDS = 2**32
"""Seeds are whole numbers below this one; `RANDOM_SEED` stands for one drawn afresh."""

FOLDER_OR_NAME = "folder that export wrote, or USER/NAME[@REVISION] on the model hub"

log = logging.getLogger("edgeproof")

Group = argparse._ActionsContainer
"""A parser, or a group of one."""


def talk(made: Group) -> None:
    """How much is said on stderr."""
    made.add_argument("-v", "--verbose", action="count", default=0, help="say more; -vv shows tracebacks")
    made.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")


def json_result(made: Group, what: str = "the result as JSON on stdout") -> None:
    made.add_argument("--json", action="store_true", help=what)


def file_to_write(text: str) -> Path:
    """The type of a flag that names a file that is written at the end, looked at before any work.

    Raises:
        UsageError: it is a folder, or its parent is no folder.
        MachineError: it cannot be written.
    """
    path = Path(text)
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "a file to write", "name a file in it")
    if os.access(path, os.W_OK):  # it is there: a file that is written over, or a pipe or device in a folder of the system's
        return path
    return _can_be_written(path)


def folder_to_write(text: str) -> Path:
    """The same of a folder that files are written into.

    Raises:
        UsageError: it is a file, or its parent is no folder.
        MachineError: nothing can be written into it.
    """
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file", "a folder to write into", "choose another name")
    return _can_be_written(path)


def _can_be_written(path: Path) -> Path:
    """The path, after a file without a name was made in it or its nearest parent: root passes every test of rights."""
    folder = path if path.is_dir() else existing_parent(path)
    if not folder.is_dir():
        raise UsageError(f"{path}: {folder} is no folder", "a path whose parents are folders", "choose another path")
    try:
        with tempfile.TemporaryFile(dir=folder):
            return path
    except OSError as error:
        raise MachineError(
            f"{path} cannot be written: {error.strerror or error}", f"a file can be made in {folder}", "choose another place"
        ) from error


def json_file(made: Group, what: str = "write the same JSON here") -> None:
    made.add_argument("--json-file", type=file_to_write, metavar="FILE", help=what)


def package(made: Group, required: bool = True, what: str = "folder that export wrote") -> None:
    made.add_argument("-p", "--package", required=required, type=Path, metavar="DIR", help=what)


def trust(made: Group) -> None:
    """``--trust``, with a hash or alone: False where it is not given, True where it is given alone."""
    made.add_argument(
        "--trust",
        nargs="?",
        const=True,
        default=False,
        metavar="SHA256",
        help="run code that the package brings, if its manifest has this hash; alone: whatever it has",
    )


def running(made: argparse.ArgumentParser) -> None:
    """How a package is opened and run."""
    run = made.add_argument_group("how it runs")
    run.add_argument("--backend", choices=tuple(runtime_backends()), help="instead of the package's own choice")
    run.add_argument("--threads", type=int, default=0, metavar="N", help="computing threads; 0 leaves it to the backend")
    run.add_argument(
        "--provider", action="append", metavar="NAME", help="ONNX Runtime provider, best first; repeatable; webgpu: any GPU"
    )
    run.add_argument(
        "--verify", choices=("full", "size", "off"), default="full", help="check files before loading (full: SHA-256)"
    )
    trust(run)


def keys(path: Path | None) -> list[str]:
    """The keys of an ``--api-key-file``; none where there is no file.

    Raises:
        UsageError: it cannot be read, or holds none, or one that clients cannot send: to all of them a header is ASCII.
    """
    if path is None:
        return []
    again = "write one key a line"
    lines = read_bytes(path, MEGABYTE, UsageError, again).decode("utf-8-sig", "replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not (line.isascii() and line.replace("\t", " ").isprintable()):
            raise UsageError(f"the key in line {number} of {path}", "printable ASCII in UTF-8", "choose another key")
    given = [line.strip() for line in lines if line.strip()]
    if not given:
        raise UsageError(f"{path} holds no API key", "one key a line", again)
    return given


def seed(made: Group, what: str, default: int | None = 0) -> None:
    """``--seed``: `seed_number` turns what was given into the seed."""
    shown = "" if default is None else f"; default {default}"
    made.add_argument("--seed", type=int, default=default, metavar="N", help=f"{what}; -1 draws one{shown}")


def seed_number(given: int) -> int:
    """The seed that a ``--seed`` means; a drawn one is told, so that the run can be repeated.

    Raises:
        UsageError: below -1, or too large.
    """
    if given == RANDOM_SEED:
        given = secrets.randbelow(SEEDS)
        log.warning("--seed %d was drawn", given)
    if not 0 <= given < SEEDS:
        raise UsageError(
            f"--seed {given}", f"a whole number from 0 to {SEEDS - 1}, or -1 to draw one", "choose another seed"
        )
    return given


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argument type: whole numbers from ``least`` on, up to ``most`` where there is one."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is no whole number of at least {least}")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"{text} is more than {most}")
        return value

    return number
