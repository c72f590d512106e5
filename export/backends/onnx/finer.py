"""Layers of an ``int8`` tower that a choice gave a finer form (`export.quantisation.choice`): what a plan says of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from export.backends.onnx.record import FINER, TOKEN_GRID
from export.quantisation.block_length import stored_bytes
from export.quantisation.spec import Assignment
from runtime_py.contracts import VISION
from runtime_py.memory import human_bytes

FORMS = {form.grid: form for form in FINER}


def chosen_grids(assignments: Mapping[str, Assignment]) -> dict[str, str]:
    """The tower's layers in another form than the plan's own, with their grids, "" for float16."""
    return {
        name: assignment.grid
        for name, assignment in assignments.items()
        if name.startswith(f"{VISION}.") and assignment.grid != TOKEN_GRID
    }


def finer_layers(assignments: Mapping[str, Assignment], planned: Mapping[str, Assignment]) -> Iterator[str]:
    """For each form the layers in it, and what they add to the files.

    Args:
        planned: the same layers without a choice.
    """
    rounded = [name for name, assignment in planned.items() if assignment.grid == TOKEN_GRID]
    chosen = chosen_grids({name: assignments[name] for name in rounded})
    for grid, form in FORMS.items():
        names = [name for name, held in chosen.items() if held == grid]
        if names:
            added = sum(stored_bytes(assignments[name]) - stored_bytes(planned[name]) for name in names)
            size = f"{human_bytes(added)} more" if added else "no byte more"
            shown = ", ".join(name.removeprefix(f"{VISION}.") for name in names)
            yield f"{len(names)} of {len(rounded)} vision layers are finer ({form.meaning}), {size}: {shown}"
