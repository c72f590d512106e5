"""``--ray`` and ``--results``, for every command whose work is a list of jobs."""

from __future__ import annotations

import argparse
from pathlib import Path

from export.cluster.jobs import Executor, one_after_another
from export.cluster.results import Form, Results

FOLDER = Path("edgeproof-results")


def add(made: argparse._ActionsContainer, jobs: str) -> None:
    """The flags; ``jobs`` says in one word what the list is of."""
    made.add_argument(
        "--ray", nargs="?", const="", metavar="ADDRESS",
        help=f"spread the {jobs} over the machines of a Ray cluster; without ADDRESS the one that this machine belongs to, "
        "else this machine's processors",
    )  # fmt: skip
    made.add_argument(
        "--results", type=Path, metavar="DIR",
        help=f"keep finished {jobs} here and take those of the same inputs; default with --ray {FOLDER}",
    )  # fmt: skip


def executor_of(options: argparse.Namespace) -> Executor:
    """Who carries the jobs out. Ray is imported when the first is, and only with ``--ray``."""
    if options.ray is None:
        return one_after_another
    from export.cluster.ray_executor import RayExecutor

    return RayExecutor(options.ray)


def results_of(options: argparse.Namespace, form: Form) -> Results | None:
    """Where finished jobs are kept, if anywhere.

    Raises:
        UsageError: see `Results`.
    """
    folder = options.results or (None if options.ray is None else FOLDER)
    return None if folder is None else Results(folder, form)
