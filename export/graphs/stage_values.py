"""What fills a stage's parameters, some rows at a time: rows of the weights, cast, or codes packed as operators want them.

The same values are written by an export (`writer`) and looked for in a package's files by its check.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from export.graphs.layout import Place
from export.quantisation.codes import CodeSource, WeightProvider
from export.quantisation.finite import all_finite, cast
from export.quantisation.grids import GRIDS
from export.quantisation.pack import pack_signed, pack_unsigned
from export.quantisation.spec import Assignment
from runtime_py.errors import CheckpointError

CHUNK = 4 << 20
"""Float32 bytes of one piece of a weight; every thread has one."""

CODES, SCALES, ZERO_POINTS = OF_CODES = ".weight_codes", ".weight_scales", ".weight_zero_points"
"""How the names of a quantised layer's parameters end."""

SIGNED = ("int8", "int4")


@dataclass(frozen=True)
class StageWeights:
    """What fills one stage's initializers.

    Attributes:
        stage: prefix that makes an initializer's name canonical.
    """

    stage: str
    weights: WeightProvider
    codes: CodeSource
    assignments: Mapping[str, Assignment]


@dataclass(frozen=True)
class Piece:
    """Rows ``start`` to ``stop`` of one parameter, or of a layer's codes, scales and zero points; None: no rows to cut."""

    places: tuple[Place, ...]
    start: int = 0
    stop: int | None = None


def pieces(places: Iterable[Place], source: StageWeights) -> Iterator[Piece]:
    """Parameters cut into what is worked on at a time."""
    return (piece for group in _by_layer(places) for piece in _pieces(group, source))


def values(piece: Piece, source: StageWeights) -> Iterator[tuple[Place, Tensor]]:
    """What is stored of a piece at each of its places, from its first row on.

    Raises:
        CheckpointError: a weight does not fit the dtype it is stored in.
    """
    first = piece.places[0]
    if first.name.endswith(OF_CODES):
        yield from _codes(piece, source)
        return
    name, dtype = f"{source.stage}.{first.name}", getattr(torch, first.dtype)
    whole = source.weights.tensor(name) if piece.stop is None else source.weights.rows(name, piece.start, piece.stop)
    yield first, _cast(whole, dtype, name)


def as_bytes(value: Tensor) -> np.ndarray:
    """uint8: the value as it lies in a file."""
    return value.contiguous().flatten().view(torch.uint8).numpy()


def _by_layer(places: Iterable[Place]) -> list[list[Place]]:
    """Places that are filled together: codes, scales and zero points of one layer; every other alone."""
    groups: dict[str, list[Place]] = {}
    for place in places:
        key = place.name
        for ending in OF_CODES:
            key = key.removesuffix(ending)
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def _pieces(group: list[Place], source: StageWeights) -> list[Piece]:
    """One layer or one parameter."""
    first = group[0]
    if first.name.endswith(OF_CODES):
        shape = source.assignments[layer_of(first.name, source)].layer
        ranges = _row_ranges(shape.rows, shape.columns)
    elif first.shape:
        ranges = _row_ranges(first.shape[0], math.prod(first.shape[1:]))
    else:
        return [Piece(tuple(group))]
    return [Piece(tuple(group), start, stop) for start, stop in ranges]


def layer_of(name: str, source: StageWeights) -> str:
    """The layer whose codes, scales or zero points an initializer holds."""
    return f"{source.stage}.{name.rpartition('.')[0]}"


def _codes(piece: Piece, source: StageWeights) -> Iterator[tuple[Place, Tensor]]:
    layer = layer_of(piece.places[0].name, source)
    grid = GRIDS[source.assignments[layer].grid]
    assert piece.stop is not None
    codes = source.codes.rows(layer, piece.start, piece.stop)
    for place in piece.places:
        if place.name.endswith(CODES):
            # the initializer's shape says how much of a last block's padding the operator wants
            stored = codes.codes[:, : place.row_bytes * 8 // grid.bits]
            yield place, (pack_signed if place.dtype in SIGNED else pack_unsigned)(stored, grid.bits)
        elif place.name.endswith(SCALES):
            yield place, codes.scales.to(getattr(torch, place.dtype))
        else:
            assert codes.zero_points is not None
            yield place, pack_unsigned(codes.zero_points, grid.bits)


def _cast(value: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    stored = cast(value, dtype)
    if dtype is torch.float16 and not all_finite(stored):
        raise CheckpointError(
            f"{name} does not fit float16",
            f"finite values up to {torch.finfo(dtype).max:.0f}",
            "choose --precision fp32, or check the checkpoint for infinities and NaNs",
        )
    return stored


def _row_ranges(rows: int, columns: int) -> list[tuple[int, int]]:
    step = max(1, CHUNK // (4 * max(columns, 1)))
    return [(row, min(row + step, rows)) for row in range(0, rows, step)]
