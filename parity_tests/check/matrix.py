"""``--matrix``: families x targets x precisions, each cell from one real export and check of a small checkpoint.

A family with a demo checkpoint is exported as a user would and its package checked (`package_check`); a family without one
is exported from its goldens and held against them (`golden`). A cell is a job (`export.cluster.jobs`): one after the other
in this process, or on the machines of a cluster, where one whose worker dies at every try has failed. Nothing is skipped in
silence: a cell that cannot be built or run says why. A package of which a part cannot run here (engines without their GPU)
is "not run" even where the rest of it passes; the detail says what passed. A phone's own library is compiled in the cell of
the target's default precision; what runs here is the same module built for this machine, in every cell.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from export.cluster.jobs import Died, Executor, Job, one_after_another, outcomes
from export.cluster.results import Form, Results
from runtime_py.backends.record import Ability
from runtime_py.errors import EdgeproofError, MachineError, UnsupportedModelError, UsageError

GOLDENS = Path(__file__).parents[1] / "goldens"
TARGETS = ("cpu", "android", "desktop-gpu")
PRECISIONS = ("fp32", "fp16", "int4")

NONE = "none"
"""In place of a checkpoint's name."""

GIGABYTES = 2.0
"""Of memory kept free for a cell: our own choice, not measured, with torch, one small model, its package and the compiler of
its library in mind."""


class Status(StrEnum):
    """What became of a cell."""

    PASS = "pass"
    FAIL = "fail"
    NOT_RUN = "not run"  # built, but this machine cannot run it, or not all of it
    NOT_BUILT = "not built"  # the target does not offer the precision, or the backend cannot hold the family


@dataclass(frozen=True)
class Cell:
    """One checkpoint on one target at one precision.

    Attributes:
        checkpoint: ``demo`` or the golden's name.
        detail: the first failure, or why the cell was not run or built.
    """

    family: str
    checkpoint: str
    target: str
    precision: str
    status: Status
    detail: str = ""
    seconds: float = 0.0


def checkpoints(family: str) -> dict[str, Path]:
    """The small checkpoints of a family by name: its demo, or its goldens where there is no demo."""
    from export.families.registry import recognise
    from export.source.hub import DEMO_FOLDER

    demo = DEMO_FOLDER / family
    if demo.is_dir():
        return {"demo": demo}
    folders = {}
    for folder in sorted(path.parent for path in GOLDENS.glob("*/outputs.npz")):
        try:
            if recognise(folder).name == family:
                folders[folder.name] = folder
        except EdgeproofError:
            continue
    return folders


@dataclass(frozen=True)
class Place:
    """Which cell: names alone, which mean the same on every machine. ``checkpoint`` is "none" for a family without one."""

    family: str
    checkpoint: str
    target: str
    precision: str

    def cell(self, status: Status, detail: str) -> Cell:
        """The cell that stands there."""
        return Cell(self.family, self.checkpoint, self.target, self.precision, status, detail)


def place_of(cell: Cell) -> Place:
    """Where a cell stands."""
    return Place(cell.family, cell.checkpoint, cell.target, cell.precision)


def jobs(families: Sequence[str] = (), targets: Sequence[str] = (), precisions: Sequence[str] = ()) -> list[Job[Cell]]:
    """Every asked cell, in the order of the table.

    Raises:
        UsageError: a family, target or precision of that name does not exist.
    """
    from export.families.registry import families as known_families
    from targets.registry import target_named
    from targets.registry import targets as known_targets

    _known("family", families, known_families())
    _known("target", targets, known_targets())
    _known("precision", precisions, PRECISIONS)
    listed = []
    for family in families or known_families():
        names = [*checkpoints(family)] or [NONE]
        for target in targets or TARGETS:
            gpu = Ability.WITHOUT_DEVICE not in target_named(target).runs.abilities
            for place in (Place(family, name, target, each) for each in precisions or PRECISIONS for name in names):
                listed.append(Job(".".join(("matrix", *astuple(place))), run_place, place, gpu=gpu, gigabytes=GIGABYTES))
    return listed


def run_matrix(
    asked: Sequence[Job[Cell]], executor: Executor[Cell] = one_after_another, results: Results[Cell] | None = None
) -> Iterator[Cell]:
    """Cells as they are done, kept ones first; one whose worker died is a failed cell.

    Args:
        results: see `export.cluster.jobs.outcomes`; of `FORM`.
    """
    for outcome in outcomes(asked, executor, results):
        result = outcome.result
        place = outcome.job.given
        yield place.cell(Status.FAIL, result.why) if isinstance(result, Died) else result


def run_place(place: Place) -> Cell:
    """The cell at a place."""
    if place.checkpoint == NONE:
        why = "the family has neither a demo checkpoint nor a golden here"
        return place.cell(Status.NOT_RUN, why)
    folder = checkpoints(place.family)[place.checkpoint]
    return run_cell(place.family, place.checkpoint, folder, place.target, place.precision)


def run_cell(family: str, name: str, folder: Path, target: str, precision: str) -> Cell:
    """Export and check one cell; errors of the tool itself count as a failure of the cell."""
    from targets.registry import target_named

    began = time.monotonic()
    if target_named(target).precision(precision) is None:
        status, detail = Status.NOT_BUILT, f"target {target} offers no {precision}"
    else:
        scratch = Path(tempfile.mkdtemp(prefix="edgeproof-matrix-"))
        try:
            status, detail = _check(name, folder, target, precision, scratch / "package")
        except MachineError as error:
            status, detail = Status.NOT_RUN, error.what
        except UnsupportedModelError as error:
            status, detail = Status.NOT_BUILT, error.what
        except Exception as error:
            status, detail = Status.FAIL, f"{type(error).__name__}: {error}"
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return Cell(family, name, target, precision, status, " ".join(detail.split()), round(time.monotonic() - began, 1))


def _check(name: str, folder: Path, target: str, precision: str, output: Path) -> tuple[Status, str]:
    from parity_tests.check.candidate import open_candidate
    from parity_tests.check.package_check import check
    from parity_tests.golden.case import read_case
    from parity_tests.golden.golden import compare_case, export_case
    from parity_tests.judging.judge import Verdict, judge
    from parity_tests.reference.checkpoint_side import open_checkpoint
    from targets.registry import target_named

    default = target_named(target).precision(None) == target_named(target).precision(precision)
    package = export_case(folder, target, precision, output, host_only=not default)
    if name == "demo":
        judgement = check(package, folder).judgement
    else:
        candidate = open_candidate(package)
        try:
            judgement = judge(compare_case(read_case(folder), candidate, open_checkpoint(folder), precision))
        finally:
            candidate.backend.close()
    reasons = "; ".join(f"{what}: {why}" for what, why in judgement.run.not_run)
    if judgement.verdict is Verdict.FAIL:
        return Status.FAIL, judgement.first_failure
    if judgement.verdict is Verdict.PASS and reasons:
        return Status.NOT_RUN, f"built; what runs here passes (backend {judgement.run.backend}); not run: {reasons}"
    return (Status.NOT_RUN, reasons) if judgement.verdict is Verdict.NOT_RUN else (Status.PASS, "")


def _from_json(stored: Any) -> Cell:
    return Cell(**{**stored, "status": Status(stored["status"])})


FORM = Form(asdict, _from_json, settled=lambda cell: cell.status in {Status.PASS, Status.NOT_BUILT})
"""Cells as they are kept. Those that failed, or could not be run on the machine that tried, are done again."""


def _known(what: str, asked: Sequence[str], known: Any) -> None:
    wrong = [name for name in asked if name not in known]
    if wrong:
        raise UsageError(f"no {what} is called {', '.join(wrong)}", f"one of {', '.join(known)}", "correct the list")


def markdown(cells: Sequence[Cell]) -> str:
    """A row per checkpoint, a column per target and precision, and the details below."""
    columns = list(dict.fromkeys((cell.target, cell.precision) for cell in cells))
    rows = list(dict.fromkeys((cell.family, cell.checkpoint) for cell in cells))
    by_place = {(cell.family, cell.checkpoint, cell.target, cell.precision): cell for cell in cells}
    lines = ["| family | checkpoint | " + " | ".join(f"{target} {precision}" for target, precision in columns) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for row in rows:
        row_cells = [by_place.get((*row, *column)) for column in columns]
        lines.append("| " + " | ".join([*row, *("" if cell is None else str(cell.status) for cell in row_cells)]) + " |")
    details = [f"- {c.family} ({c.checkpoint}), {c.target} {c.precision}, {c.status}: {c.detail}" for c in cells if c.detail]
    return "\n".join([*lines, "", *details]).rstrip() + "\n"


def verdict_of(cells: Sequence[Cell]) -> Status:
    """Of the whole matrix: a failure where any cell is one, and no pass where none passed."""
    found = {cell.status for cell in cells}
    return next((status for status in (Status.FAIL, Status.PASS) if status in found), Status.NOT_RUN)


def to_json(cells: Sequence[Cell]) -> str:
    """The verdict and every cell."""
    return json.dumps({"verdict": verdict_of(cells), "cells": [asdict(cell) for cell in cells]}, indent=2) + "\n"
