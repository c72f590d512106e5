"""Which parameters of a package go through float16 as the checkpoint has them."""

from __future__ import annotations

from collections.abc import Mapping

from export.quantisation.grids import GRIDS
from export.quantisation.spec import Assignment, Storage


def rounded_to_float16(assignments: Mapping[str, Assignment]) -> set[str]:
    """Names of matrices stored in float16, or rounded to it before they are quantised (a grid's ``model_dtype``)."""
    return {
        f"{name}.weight"
        for name, assignment in assignments.items()
        if assignment.storage is Storage.FP16 or getattr(GRIDS.get(assignment.grid), "model_dtype", "float32") == "float16"
    }
