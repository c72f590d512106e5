"""Products of panels of tokens with a matrix: of bytes, rounded inputs with int8 weights as they lie, and of float32.

A tile of rows of the matrix keeps its sums for all tokens of a panel in registers while columns pass by: one vector of the
panel is read for every `TILE` numbers of the matrix, each of which multiplies all of it. The numbers of the product
of bytes are those of ONNX Runtime's MatMulIntegerToFloat (microsoft/onnxruntime, docs/ContribOperators.md): sums are exact.
"""

# mypy: ignore-errors
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from export.processor.panel_activation import activated
from export.processor.token_panels import (
    LANES,
    PANEL,
    TILE,
    VECTORS,
    as_float,
    at,
    block,
    byte_dot,
    every,
    got,
    panel_kernel,
    put,
    registers,
    spread,
)
from export.processor.vectors import Index

GROUP = 48
"""Rows of the matrix, at least, that one core multiplies with all panels: they stay in its cache."""

FOUR = 4
"""Bytes that are multiplied at once."""


@dataclass(frozen=True)
class PanelMatrix:
    """A matrix and what is done with its product.

    Attributes:
        rows, columns: outputs and inputs.
        bias: a number is added to each row.
        addend: panels are added.
        activation: of `export.specs.Activation`, applied last; "" for none.
    """

    rows: int
    columns: int
    bias: bool = False
    addend: bool = False
    activation: str = ""

    def ends(
        self,
        arrays: dict[str, tirx.Buffer],
        total: tirx.Buffer,
        scaled: Callable[[Index, int, tirx.Expr], tirx.Expr],
        panel: Index,
        first: Index,
    ) -> None:
        """Write the rows of a tile from ``first`` on: ``scaled`` makes a row's product of its sums."""
        done = T.sblock_alloc_buffer((TILE, PANEL), total.dtype)
        for side in range(TILE):
            for vector in range(VECTORS):
                T.buffer_store(done, got(total, side, vector), [side, at(vector)])
        # a loop, as the code of activations is long
        with T.serial(0, TILE) as side, block("row"):
            row = first + side
            for vector in range(VECTORS):
                value = scaled(side, vector, done[side, at(vector)])
                if self.bias:
                    value = value + spread(arrays["bias"][row])
                if self.addend:
                    value = value + arrays["addend"][panel, row, at(vector)]
                if self.activation:
                    value = activated(value, self.activation)
                T.buffer_store(arrays["out"], value, [panel, row, at(vector)])

    def last_arrays(self) -> dict[str, tuple[str, tuple[int | str, ...]]]:
        """The arguments behind input and weights."""
        panels = ("float32", ("panels", self.rows, PANEL))
        return {
            **({"bias": ("float32", (self.rows,))} if self.bias else {}),
            **({"addend": panels} if self.addend else {}),
            "out": panels,
        }


def unsupported(matrix: PanelMatrix) -> str:
    """Why no product of bytes is written for the matrix; empty where one is."""
    if matrix.columns % FOUR:
        return f"{matrix.columns} columns: whole fours are expected"
    return f"{matrix.rows} rows: at least {TILE} are expected" if matrix.rows < TILE else ""


def byte_product(matrix: PanelMatrix, zero: int, factor: float = 1.0) -> tirx.PrimFunc:
    """(codes - zero) times scale of the token times weights times scale of the row times ``factor``, and `PanelMatrix`.

    Arguments: codes int32 (panels, columns / 4, PANEL), four bytes of a token each; scales float32 (panels, PANEL);
    weight_codes int8 (rows, columns); weight_scales float32 (rows,); bias (rows,) and addend (panels, rows, PANEL) where the
    matrix has them; out float32 (panels, rows, PANEL).

    Raises:
        ValueError: the matrix is one that `unsupported` names.
    """
    if unsupported(matrix):
        raise ValueError(f"no product is written for {unsupported(matrix)}")
    shapes = {
        "codes": ("int32", ("panels", matrix.columns // FOUR, PANEL)),
        "scales": ("float32", ("panels", PANEL)),
        "weight_codes": ("int8", (matrix.rows, matrix.columns)),
        "weight_scales": ("float32", (matrix.rows,)),
        **matrix.last_arrays(),
    }

    def write(arrays: Mapping[str, tirx.Buffer]) -> None:
        codes, scales, weights = (arrays[name] for name in ("codes", "scales", "weight_codes"))
        sums = lambda: registers("int32", TILE, VECTORS)  # noqa: E731

        def group(first: Index, count: Index) -> Callable[[tirx.Buffer, Index, Index], None]:
            zeros = T.sblock_alloc_buffer((2 * GROUP,), "int32")
            with T.serial(0, count) as row:
                T.buffer_store(zeros, _sum_of_row(weights, first + row) * T.int32(-zero), [row])

            def tile(total: tirx.Buffer, panel: Index, row: Index) -> None:
                for side in range(TILE):
                    for vector in range(VECTORS):
                        put(total, spread(zeros[row - first + side]), side, vector)
                with T.serial(0, matrix.columns // FOUR) as four:
                    for side in range(TILE):
                        weight = T.reinterpret("int32", weights[row + side, T.ramp(four * FOUR, 1, FOUR)])
                        for vector in range(VECTORS):
                            read = codes[panel, four, at(vector)]
                            put(total, byte_dot(got(total, side, vector), read, spread(weight)), side, vector)

                def scaled(side: Index, vector: int, sums: tirx.Expr) -> tirx.Expr:
                    scale = arrays["weight_scales"][row + side] * T.float32(factor)
                    return as_float(sums) * (scales[panel, at(vector)] * spread(scale))

                matrix.ends(arrays, total, scaled, panel, row)

            return tile

        _in_groups(matrix.rows, arrays["panels"], sums, group)

    return panel_kernel(shapes, write)


def float_product(matrix: PanelMatrix, stored: str = "float32") -> tirx.PrimFunc:
    """Arguments: x float32 (panels, columns, PANEL); weight (rows, columns), ``stored`` as float32 or float16; then those of
    `PanelMatrix`. Sums are float32.
    """
    shapes = {
        "x": ("float32", ("panels", matrix.columns, PANEL)),
        "weight": (stored, (matrix.rows, matrix.columns)),
        **matrix.last_arrays(),
    }

    def write(arrays: Mapping[str, tirx.Buffer]) -> None:
        def tile(total: tirx.Buffer, panel: Index, row: Index) -> None:
            for side in range(TILE):
                for vector in range(VECTORS):
                    put(total, every(0.0), side, vector)
            with T.serial(0, matrix.columns) as column:
                for side in range(TILE):
                    number = arrays["weight"][row + side, column]
                    weight = spread(number if stored == "float32" else T.Cast("float32", number))
                    for vector in range(VECTORS):
                        product = arrays["x"][panel, column, at(vector)] * weight
                        put(total, got(total, side, vector) + product, side, vector)
            matrix.ends(arrays, total, lambda _side, _vector, sums: sums, panel, row)

        _in_groups(matrix.rows, arrays["panels"], lambda: registers("float32", TILE, VECTORS), lambda *_: tile)

    return panel_kernel(shapes, write)


def _in_groups(rows: int, panels: tirx.Expr, sums: Callable[[], tirx.Buffer], group: Callable[..., Callable]) -> None:
    """Every tile of rows of every panel; a group of rows goes to one core."""
    groups = max(1, rows // GROUP)
    with T.parallel(0, groups) as number, block("group"):
        bounds = T.sblock_alloc_buffer((2,), "int32")
        for side in range(2):
            T.buffer_store(bounds, (T.Cast("int32", number) + side) * rows // groups, [side])
        first, count = bounds[0], bounds[1] - bounds[0]
        tile = group(first, count)
        with T.serial(0, panels) as panel, T.serial(0, (count + TILE - 1) // TILE) as part, block("tile"):
            # the last tile has rows of the one before where too few are left
            tile(sums(), panel, T.min(first + part * TILE, bounds[1] - TILE))


def _sum_of_row(weights: tirx.Buffer, row: Index) -> tirx.Expr:
    """int32: all weights of a row together."""
    columns, wide = int(weights.shape[1]), FOUR * LANES
    sums, total = registers("int32"), T.sblock_alloc_buffer((1,), "int32")
    put(sums, spread(T.int32(0)))
    with T.serial(0, columns // wide) as part:
        read = T.reinterpret(f"int32x{LANES}", weights[row, T.ramp(part * wide, 1, wide)])
        put(sums, byte_dot(got(sums), spread(T.int32(0x01010101)), read))
    T.buffer_store(total, sum((sums[lane] for lane in range(1, LANES)), sums[0]), [0])
    if columns % wide:
        with T.serial(columns // wide * wide, columns) as column:
            T.buffer_store(total, total[0] + T.Cast("int32", weights[row, column]), [0])
    return total[0]
