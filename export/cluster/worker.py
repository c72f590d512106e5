"""What runs on a worker: one job, after the worker's own versions are seen to be those of the machine that asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from export.cluster.product import Product, here, require_same
from runtime_py.errors import EdgeproofError


def carry_out(asked: Product, task: Callable[[Any], Any], given: Any) -> Any:
    """The task's result, or the error with which it ends; the caller raises that.

    An error travels as a result because Ray wraps what is raised, and its three parts would be lost.
    """
    try:
        require_same(asked, here())
        return task(given)
    except EdgeproofError as error:
        return error
