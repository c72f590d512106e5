"""Products of adapters: not rounded, weighted by the channels that a request chose, and added where they belong.

What a graph says with Concat, GatherND and Add is remembered until the sum is known to which a product is added: it goes
there as it is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from tvm import relax

from export.backends.onnx.decoder_library.nodes import attribute, refused
from export.backends.onnx.decoder_library.translation import Translation
from export.backends.onnx.decoder_library.values import Parameter, Part, RequestValue, Unmade, Value, Zeros
from export.processor.block_product import BlockMatrix
from export.processor.float_product import Columns, unsupported


@dataclass(frozen=True, eq=False)
class Unrounded(Unmade):
    """The product of rows with a matrix of codes and scales."""

    rows: relax.Var
    matrix: BlockMatrix
    held: tuple[relax.Var, relax.Var]

    @property
    def width(self) -> int:
        return self.matrix.rows

    def made(self, decoder: Translation) -> relax.Var:
        kernel = decoder.kernels.float_product(self.matrix)
        made = decoder.call("float_product", kernel, [self.rows, *self.held], decoder.like(self.rows, self.width))
        decoder.adapters[made] = self
        return made

    def weighted(self, decoder: Translation, weights: relax.Var) -> relax.Var:
        """Every output times its channel's weight."""
        kernel = decoder.kernels.float_product(self.matrix, weights=int(weights.ty.shape[0]))
        out = decoder.like(self.rows, self.width)
        return decoder.call("weighted_product", kernel, [self.rows, *self.held, weights], out)

    def onto(self, decoder: Translation, base: relax.Var, start: int = 0) -> relax.Var:
        into = Columns(int(base.ty.shape[1]), start)
        kernel = decoder.kernels.float_product(self.matrix, into=into)
        return decoder.change("added_product", kernel, [self.rows, *self.held, base])


@dataclass(frozen=True, eq=False)
class Beside(Unmade):
    """Products side by side."""

    parts: tuple[Unrounded, ...]

    def made(self, decoder: Translation) -> relax.Var:
        return decoder.emit(relax.op.concat([decoder.tensor(part) for part in self.parts], axis=-1))

    def onto(self, decoder: Translation, base: relax.Var) -> relax.Var:
        start = 0
        for part in self.parts:
            base = part.onto(decoder, base, start)
            start += part.width
        return base


@dataclass(frozen=True, eq=False)
class Behind:
    """Rows, and a row of zeros behind them: never a tensor, for tokens alone are taken of it."""

    rows: Unmade


@dataclass(frozen=True, eq=False)
class Spread:
    """The row that an index names for each token; none where it names the one behind them. Never a tensor, but added."""

    rows: Unmade
    index: relax.Var

    def onto(self, decoder: Translation, base: relax.Var) -> relax.Var:
        kernel = decoder.kernels.row_deltas(int(base.ty.shape[1]))
        return decoder.change("row_deltas", kernel, [decoder.tensor(self.rows), self.index, base])


def unrounded_product(decoder: Translation, node: onnx.NodeProto, x: Value, codes: Parameter, scales: Parameter) -> Value:
    """MatMulNBits whose inputs are taken as they are.

    Raises:
        UnsupportedModelError: no kernel multiplies such a matrix.
    """
    rows, columns, block = (attribute(node, name) for name in ("N", "K", "block_size"))
    matrix = BlockMatrix(rows, columns, block, attribute(node, "bits", 4))
    reason = unsupported(matrix)
    if reason:
        raise refused(node, f"has {reason}")
    whole = isinstance(x, Part) and (x.start, x.width) == (0, int(x.source.ty.shape[-1]))
    return Unrounded(x.source if whole else decoder.rows_of(x), matrix, (decoder.placed(codes), decoder.placed(scales)))


def weighted(decoder: Translation, one: Value, other: Value) -> Value | None:
    """A part of a product times what a request gives its channels, where the two are that."""
    for part, weights in ((one, other), (other, one)):
        if isinstance(part, Part) and part.source in decoder.adapters and isinstance(weights, RequestValue):
            if len(weights.value.ty.shape) != 1 or int(weights.value.ty.shape[0]) != part.width:
                return None
            product = decoder.adapters[part.source]
            if product.width % part.width or part.start % part.width:
                return None
            key = part.source, weights.value
            if key not in decoder.weighted:
                # nothing reads the product without weights any more, so it is dropped
                decoder.weighted[key] = product.weighted(decoder, weights.value)
            return Part(decoder.weighted[key], part.start, part.width)
    return None


def added(decoder: Translation, node: onnx.NodeProto, given: list[Value]) -> Value | None:
    """A product of rounded inputs and one of an adapter, which is added to it where it lies if nothing else reads it.

    Raises:
        UnsupportedModelError: rows of deltas are added to something else.
    """
    for value, base in (given, given[::-1]):
        fresh = isinstance(base, relax.Var) and base in decoder.products and not decoder.unread[base]
        if fresh and isinstance(value, Unrounded | Beside | Spread):
            return value.onto(decoder, base)
        if isinstance(value, Spread):
            raise refused(node, "adds rows of deltas to something else than a product that nothing else reads")
    return None


def joined(node: onnx.NodeProto, given: list[Value]) -> Value | None:
    """Products side by side, or one before a row of zeros; None of anything else."""
    if attribute(node, "axis") == -1 and all(isinstance(value, Unrounded) for value in given):
        return Beside(tuple(given))
    match given:
        case [Unmade() as rows, Zeros()] if attribute(node, "axis") == 1:
            return Behind(rows)
    return None
