"""A second decoder for calls of many rows: prompts, and tokens of several sequences at a time.

MatMulNBits, which reads fewest bytes for one row, takes nearly as long again for every further one; a product of int8 and
int8 rows takes hardly longer for eight than for one (docs/results/many_rows.md). So a package may hold two decoders. Both
say the same model: the second one's matrices are the numbers that the codes of the first stand for, turned and rounded to
int8 with one scale a row (`requantised`); what it has in common with the first lies in that one's data file. Inputs are
turned and rounded alike (`export.backends.onnx.rotated_linear`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.backends.onnx.record import ROTATED_GRID
from export.quantisation.codes import CodeSource, DequantisedWeights, RoundToNearest, WeightProvider
from export.quantisation.grids import GRIDS
from export.quantisation.spec import Assignment, Storage
from runtime_py.contracts import DECODER
from runtime_py.errors import PackageError

STEM = "decoder_many_rows_int8"

LEAST_SEQUENCES = 4
"""Sequences from which a step of all of them is faster through this decoder: docs/results/many_rows.md."""

ROLES = ("decoder", "head")
REASON = "the numbers of the one-row decoder's codes in eight bits, turned, one scale a row; inputs alike"


def many_rows_file(folder: str) -> Path:
    """Path of the graph in the package."""
    return Path(folder) / f"{STEM}.onnx"


def second_assignments(assignments: Mapping[str, Assignment]) -> dict[str, Assignment]:
    """What the decoder's layers become in this graph; those that are no integers, and adapters, are the first one's."""
    return {
        name: Assignment(row.layer, Storage.INT8, ROTATED_GRID, REASON)
        for name, row in assignments.items()
        if name.startswith(f"{DECODER}.") and row.grid and row.layer.role in ROLES
    }


@dataclass(frozen=True)
class Requantised:
    """Weights as a package's codes say them, and this decoder's codes of those.

    Attributes:
        layers: those of this decoder.
        assignments: of the whole package, with ``layers`` in place of the first decoder's.
        weights: every parameter, as the package's own codes say it.
        codes: of ``layers``.
    """

    layers: Mapping[str, Assignment]
    assignments: Mapping[str, Assignment]
    weights: WeightProvider
    codes: CodeSource


def requantised(weights: WeightProvider, codes: CodeSource, assignments: Mapping[str, Assignment]) -> Requantised:
    """The second decoder of a package with these weights, codes and assignments."""
    second = second_assignments(assignments)
    read = DequantisedWeights(weights, codes, assignments, GRIDS)
    return Requantised(second, {**assignments, **second}, read, RoundToNearest(read, second, GRIDS))


def require_turned(package: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a second decoder whose layers, as its manifest names them, are not those that are written today.

    Raises:
        PackageError: its inputs are rounded as earlier versions did, in 14 bits without a turn.
    """
    others = sorted({row["grid"] for row in rows.values() if row.get("grid")} - {ROTATED_GRID})
    if others:
        raise PackageError(
            f"{package}: the second decoder stores {', '.join(others)}, as earlier versions wrote it",
            f"layers of {ROTATED_GRID}",
            "export the package again; it runs as before, and only its check needs this",
        )


def in_common(first: Path, model: Any, assignments: Mapping[str, Assignment]) -> dict[str, Any]:
    """Where the first decoder's parameters lie that this graph reads too (export.graphs.writer.Elsewhere), by name."""
    from export.graphs.writer import lying, parameters

    own = {name.partition(".")[2] for name in second_assignments(assignments)}
    shared = [tensor.name for tensor in parameters(model) if _layer(tensor.name) not in own or not is_integer(tensor.name)]
    return lying(first, shared)


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def is_integer(parameter: str) -> bool:
    """Whether an initializer holds codes of a layer, or their scales."""
    from export.graphs.stage_values import CODES, SCALES

    return parameter.endswith((CODES, SCALES))
