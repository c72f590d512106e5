"""How many bits a weight truly takes in a package, and the layers that a block length pads or keeps wide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from export.backends.registry import backend_named
from export.quantisation.block_length import AUTO, largest_dividing, padded_columns, stored_bytes
from export.quantisation.spec import Assignment, Storage, is_int4
from runtime_py.contracts import STAGES

BLOCK = "block_size"
"""The option of backends that leave the block length to the user."""


@dataclass(frozen=True)
class Width:
    """What the matrices of a stage, or of all, take in the files of one backend.

    Attributes:
        weights: numbers in them; a matrix that two layers share counts once.
        size: bytes of their codes, scales, zero points and padding.
        padding: bytes of it that hold columns which no layer has.
    """

    weights: int
    size: int
    padding: int = 0

    @property
    def bits(self) -> float:
        """Bits per weight, 0 where there is none."""
        return 8 * self.size / self.weights if self.weights else 0.0

    def __add__(self, other: Width) -> Width:
        return Width(self.weights + other.weights, self.size + other.size, self.padding + other.padding)


NOTHING = Width(0, 0)


def widths(assignments: Mapping[str, Assignment]) -> dict[str, Width]:
    """Stage to the width of its matrices, in the stages' order."""
    stages = dict.fromkeys(STAGES, NOTHING)
    for name, assignment in assignments.items():
        if not assignment.shares:
            stages[name.partition(".")[0]] += _width(assignment)
    return {stage: width for stage, width in stages.items() if width.weights}


def whole(assignments: Mapping[str, Assignment]) -> Width:
    """The width of all matrices of a package."""
    return sum(widths(assignments).values(), NOTHING)


def _width(assignment: Assignment) -> Width:
    layer, size = assignment.layer, stored_bytes(assignment)
    padding = padded_columns(assignment)
    return Width(layer.rows * layer.columns, size, size * padding // (layer.columns + padding))


def remarks(backend: str, precision: str, assignments: Mapping[str, Assignment]) -> Iterator[str]:
    """What the headline's precision hides: padded blocks, and layers that stay wide because no block divides them."""
    if not is_int4(precision):
        return
    option = backend_named(backend).option(BLOCK)
    lengths: Sequence[object] = () if option is None else option.values
    padded = [a for a in assignments.values() if a.storage is Storage.INT4 and padded_columns(a)]
    if padded:
        columns = sorted({a.layer.columns for a in padded})
        all_padding = sum((_width(a) for a in padded), NOTHING)
        share = 100 * all_padding.padding / all_padding.size
        yield (
            f"{backend}: {len(padded)} int4 layers of {_listed(columns)} columns are padded to whole blocks, "
            f"{share:.0f} % of their bytes; {_advice(columns, lengths)}"
        )
    wide = [a for a in assignments.values() if a.undivided]
    if wide:
        columns = sorted({a.layer.columns for a in wide})
        share = 100 * sum(a.layer.rows * a.layer.columns for a in wide) / whole(assignments).weights
        yield (
            f"{backend}: {len(wide)} layers of {_listed(columns)} columns, {share:.0f} % of the weights, stay in fp16 "
            f"although int4 is asked for: its blocks do not divide them; {_advice(columns, lengths)}"
        )


def _advice(columns: Sequence[int], lengths: Sequence[object]) -> str:
    fitting = largest_dividing(columns, lengths)
    if fitting is None:
        return "no length that this backend has divides them" if not lengths else f"--block-size {AUTO} pads least"
    return f"--block-size {fitting} divides them, {AUTO} chooses for each layer"


def _listed(columns: Sequence[int]) -> str:
    return ", ".join(map(str, columns))
