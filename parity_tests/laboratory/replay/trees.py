"""A side of the comparison: packages that lie there, a source tree, or a revision that is checked out for the purpose."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from parity_tests.laboratory.replay.cells import Cell
from runtime_py.errors import UsageError

log = logging.getLogger("edgeproof")

ROOT = Path(__file__).resolve().parents[3]
"""The tree this file lies in."""

RECORD = "replay.json"
"""File in a folder of packages: seconds of each export, and why one failed."""

LIMIT_SECONDS = 1800


@dataclass(frozen=True)
class Exported:
    """What became of one cell.

    Attributes:
        package: its folder; None where the export failed or the packages given do not hold it.
        failure: the last words of an export that failed.
    """

    package: Path | None
    seconds: float = 0.0
    failure: str = ""


@dataclass(frozen=True)
class Side:
    """Base or head: where packages come from.

    Attributes:
        name: as the user named it.
        tree: root of a source tree whose command line exports, or None where ``packages`` hold them already.
    """

    name: str
    packages: Path
    tree: Path | None

    def exports(self, cells: list[Cell]) -> dict[Cell, Exported]:
        """Every cell's package, exported one after the other where a tree is given."""
        if self.tree is None:
            return {cell: _lying(self.packages / cell.name) for cell in cells}
        self.packages.mkdir(parents=True, exist_ok=True)
        done: dict[Cell, Exported] = {}
        for number, cell in enumerate(cells, 1):
            done[cell] = result = export(self.tree, cell, self.packages / cell.name)
            outcome = f"{result.seconds:.0f} s" if result.package else "FAILED"
            log.info("[%d/%d] %s from %s: %s", number, len(cells), cell.name, self.name, outcome)
            record = {c.name: {"seconds": round(r.seconds, 1), "failure": r.failure} for c, r in done.items()}
            (self.packages / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return done


@contextmanager
def side(given: str, packages: Path) -> Iterator[Side]:
    """What ``--base`` or ``--head`` names: a source tree, a folder of packages, or a revision of this repository.

    Args:
        packages: absolute folder that receives what is exported; the revision's tree lies beside it while this is open.

    Raises:
        UsageError: the name is neither a folder nor a revision.
    """
    folder = Path(given)
    if folder.is_dir():
        is_tree = (folder / "pyproject.toml").is_file()
        yield Side(given, packages if is_tree else folder.resolve(), folder.resolve() if is_tree else None)
        return
    tree = packages.with_name(packages.name + "-tree")
    shutil.rmtree(tree, ignore_errors=True)
    _git("worktree", "prune")
    done = _git("worktree", "add", "--detach", str(tree), given)
    if done.returncode:
        raise UsageError(
            f"{given} is neither a folder nor a revision: {done.stderr.strip()}",
            "a commit, branch or tag, a source tree, or a folder of packages that an earlier run kept",
            "name one of these",
        )
    try:
        yield Side(given, packages, tree)
    finally:
        _git("worktree", "remove", "--force", str(tree))


def export(tree: Path, cell: Cell, output: Path) -> Exported:
    """Export a demo by a tree's own command line, in a process of its own.

    The working folder is the packages' own and every path absolute: nothing of the other tree is on the import path.
    """
    for leftover in (output, output.with_name(output.name + ".partial")):
        shutil.rmtree(leftover, ignore_errors=True)
    command = [sys.executable, "-m", "export", "--model", cell.family, "--weights", "demo", "--target", cell.target]
    command += ["--precision", cell.precision, "--skip-verify", "-o", str(output)]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **os.environ, "PYTHONPATH": str(tree)}
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=output.parent, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return Exported(None, time.monotonic() - began, f"still running after {LIMIT_SECONDS} s")
    seconds = time.monotonic() - began
    if done.returncode:
        return Exported(None, seconds, "\n".join(done.stderr.strip().splitlines()[-6:]))
    return Exported(output, seconds)


def _lying(folder: Path) -> Exported:
    if (folder / "manifest.json").is_file():
        return Exported(folder)
    return Exported(None, failure=f"no package in {folder}")


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
