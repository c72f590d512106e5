"""What runs on a worker: one job, after the worker's own versions are seen to be those of the machine that asks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.cluster.product import Product, here, require_same
from runtime_py.errors import EdgeproofError


def carry_out(asked: Product, folder: Path, task: Callable[[Any], Any], given: Any) -> Any:
    """The task's result, or the error with which it ends; the caller raises that.

    An error travels as a result because Ray wraps what is raised, and its three parts would be lost.

    Args:
        folder: where the machine that asks stands. Relative paths are meant from there, on a disk that all machines see.
    """
    try:
        if folder.is_dir():
            os.chdir(folder)
        require_same(asked, here())
        return task(given)
    except EdgeproofError as error:
        return error
