"""A choice of bits: which layers get more than the plan gives them, as a file that can be replayed.

Layers of four bits get a wider storage (`export.backends.record.Backend.wider`), those that round their inputs another form
(`Backend.finer`).

{"kind": "bit choice", "schema": 1, "target": "cpu", "precision": "int4",
 "backends": {"onnx": {"decoder.layers.3.mlp.down": "int8", ...}}, ...}
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.backends.registry import backend_named
from export.quantisation.grids import GRIDS
from export.quantisation.spec import Assignment, Storage
from runtime_py.errors import UsageError
from runtime_py.files.json_file import MEGABYTE, read_json, shortened

KIND, SCHEMA = "bit choice", 1
EXPECTED = "layers that are int4, or round their inputs (int8 towers of cpu packages)"
AGAIN = "search again, with the flags of this export"
NAME_ANOTHER = "name a file that calibrate search or vision wrote"
MEASURED = "chosen by calibrate vision"
MAX_BYTES = 16 * MEGABYTE


def read_choice(path: Path) -> dict[str, Any]:
    """A choice file.

    Raises:
        UsageError: it cannot be read, or is something else.
    """
    choice: dict[str, Any] = read_json(path, MAX_BYTES, UsageError, NAME_ANOTHER)
    if not isinstance(choice, dict) or choice.get("kind") != KIND or choice.get("schema") != SCHEMA:
        kind, schema = (shortened(choice.get(key)) if isinstance(choice, dict) else None for key in ("kind", "schema"))
        raise UsageError(
            f"{path} is no choice of bits that is read here",
            f"kind '{KIND}', schema {SCHEMA}; found kind {kind}, schema {schema}",
            "search again with this version" if kind == repr(KIND) else NAME_ANOTHER,
        )
    backends = choice.get("backends")
    rows = list(backends.values()) if isinstance(backends, dict) else [None]
    if not all(isinstance(row, dict) and all(isinstance(name, str) for name in row.values()) for row in rows):
        raise UsageError(
            f"{path} holds no bits per layer: backends is {shortened(backends)}",
            '{"backend": {"layer": "storage"}}',
            NAME_ANOTHER,
        )
    return choice


def storages_of(path: Path, backends: Collection[str]) -> Mapping[str, Mapping[str, str]]:
    """Layers with their storages or forms, by backend.

    Args:
        backends: those of the target.

    Raises:
        UsageError: it cannot be read, or was made for other backends, so that it would change nothing.
    """
    choice = read_choice(path)
    rows: Mapping[str, Mapping[str, str]] = choice["backends"]
    if not set(rows) & set(backends):
        of = f" (target {shortened(choice['target'])})" if "target" in choice else ""
        raise UsageError(
            f"{path} chooses for the backend {', '.join(sorted(rows)) or 'none'}{of}",
            f"a choice for {' or '.join(sorted(backends))}, of which this target's packages are made",
            "leave --choice out, or search again with this --target",
        )
    return rows


def measured_elsewhere(path: Path, model: str) -> tuple[str, ...]:
    """What is to be known of a choice that was measured on another checkpoint than ``model``; nothing of one's own."""
    source = read_choice(path).get("source")
    if source is None or source == model:
        return ()
    return (f"the choice of bits was measured on {shortened(source)}, not on {model}: its scores are not this model's",)


def told_of(path: Path, backend: str) -> dict[str, Any]:
    """What a package's manifest says of a choice: layers with their forms, what was sought, on what, and what it gives."""
    choice = read_choice(path)
    kept: dict[str, Any] = {key: choice[key] for key in ("source", "goal", "measured_on", "scores") if key in choice}
    return {"layers": choice["backends"].get(backend, {}), **kept}


def widened(backend: str, assignments: Mapping[str, Assignment], storages: Mapping[str, str]) -> dict[str, Assignment]:
    """The assignments with some layers in another storage or form.

    Raises:
        UsageError: a layer that is neither int4 in the plan nor has finer forms, or a storage that the backend does not have
            for it.
    """
    chosen = dict(assignments)
    for layer, name in storages.items():
        assignment = chosen.get(layer)
        if assignment is None:
            raise UsageError(f"the choice of bits names {layer}, which is no layer of this model", EXPECTED, AGAIN)
        offered = forms(backend, assignment)
        if not offered:
            what = f"{assignment.storage} in this plan"
            raise UsageError(f"the choice of bits names {layer}, which is {what}", EXPECTED, AGAIN)
        if name not in offered:
            allowed = f"{', '.join(offered)} for {backend}"
            raise UsageError(f"the choice of bits makes {layer} {name}", allowed, AGAIN)
        chosen[layer] = offered[name]
    return shared(chosen)


def forms(backend: str, assignment: Assignment) -> dict[str, Assignment]:
    """What a choice may make of a layer, by the names that it writes, coarse to fine; none where it stays as it is."""
    record = backend_named(backend)
    if assignment.storage is Storage.INT4:
        return {str(storage): widen(assignment, storage, record.wider) for storage in record.wider}
    return {
        form.name: replace(assignment, storage=form.storage, grid=form.grid, reason=f"{MEASURED}: {form.meaning}")
        for form in record.finer.get(assignment.grid, ())
    }


def shared(assignments: Mapping[str, Assignment]) -> dict[str, Assignment]:
    """The assignments, with every layer that shares its matrix with another one in the storage of that one."""
    alike = dict(assignments)
    for name, assignment in assignments.items():
        if assignment.shares:
            other = assignments[assignment.shares]
            # one operator may read as one grid what another reads as a second one; the storage says the codes are the same
            if other.storage is not assignment.storage:
                alike[name] = replace(assignment, storage=other.storage, grid=other.grid)
    return alike


def widen(assignment: Assignment, storage: Storage, wider: Mapping[Storage, str]) -> Assignment:
    """One int4 layer in a wider storage; codes of 8 bits keep the block size.

    Args:
        wider: the backend's storages with their grids (export.backends.record.Backend).
    """
    grid = wider[storage].format(block=GRIDS[assignment.grid].group)
    return replace(assignment, storage=storage, grid=grid, reason="chosen by calibrate search")
