"""What towers of every kind have as a Relax function over panels of tokens (`export.processor.token_panels`).

Layers are those that `export.backends.onnx.int8_linear` rounds; matrices are those of the graph's data file. A call takes
one picture, so that it has the same bits in any company.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar

from tvm import relax, tirx

from export.backends.onnx.choices import rounds_finely
from export.backends.onnx.decoder_library.values import Parameter
from export.backends.onnx.int8_linear import ACTIVATED, ACTIVATED_ZERO, FINER, HIGHEST, ZERO
from export.backends.onnx.record import TOKEN_GRID
from export.modules.vision.specs import RotaryVisionSpec, VisionSpec
from export.processor import panel_attention, panel_product, panel_rows
from export.processor.panel_product import PanelMatrix
from export.processor.rounded_heads import PanelHeads
from export.processor.token_panels import PANEL
from runtime_py.backends.vision_library import TOWER
from runtime_py.contracts import VISION

Spec = TypeVar("Spec", bound=VisionSpec | RotaryVisionSpec)


class PanelTower(ABC, Generic[Spec]):
    """Writes the function of one tower.

    Args:
        chosen: grids of layers that a choice gave another one, "" for those whose matrices are float16.

    Attributes:
        parameters: those that the function takes, in the order of its tuple.
        dropped: tokens in front that are not part of the result.
        kind: how positions are made, as the runtime names it.
        most: tokens of a picture: what memory is planned for.
        turns: panels of what turns queries and keys, once `_begin` has made them; none where positions are added.
    """

    dropped = 0
    kind: str
    most: int

    def __init__(self, spec: Spec, chosen: Mapping[str, str]) -> None:
        self.spec, self._grids = spec, chosen
        self.parameters: list[Parameter] = []
        self.turns: list[relax.Var] = []
        self._builder = relax.BlockBuilder()
        self._kernels: dict[object, relax.GlobalVar] = {}

    def tables(self) -> list[Parameter]:
        """Of positions that are added: one for patches, and one for a class token where there is one."""
        return []

    def told(self, tables: list[Any]) -> dict[str, Any]:
        """What the runtime is told of positions; ``tables`` say where each of `tables` lies."""
        return {}

    def module(self) -> Any:
        """The Relax module with `TOWER`: a picture's `_arguments` and parameters to float32 (tokens, width)."""
        spec, self._tokens = self.spec, tirx.Var("tokens", "int64")
        self._panels = (self._tokens + (PANEL - 1)) // PANEL
        given = self._arguments()
        self._held = relax.Var("parameters", relax.ObjectType())
        with self._builder.function(TOWER, [*given, self._held]):
            with self._builder.dataflow():
                x = self._begin(*given)
                for number in range(spec.layers):
                    x = self._block(f"blocks.{number}", x)
                x = self._end(x)
                kept = relax.TensorType((self._tokens - self.dropped, spec.width), "float32")
                make = lambda: panel_rows.tokens(spec.width, self.dropped)  # noqa: E731
                result = self._builder.emit_output(self._call("tokens", ("tokens", self.dropped), make, [x], kept))
            self._builder.emit_func_output(result)
        return self._builder.finalize()

    @abstractmethod
    def _arguments(self) -> list[relax.Var]:
        """What a picture is given as."""

    @abstractmethod
    def _begin(self, *given: relax.Var) -> relax.Var:
        """Panels that the first block reads."""

    def _block(self, name: str, x: relax.Var) -> relax.Var:
        """Norms stand before layers."""
        x = self._attention(f"{name}.attention", self._norm(f"{name}.norm1", x), x)
        return self._mlp(f"{name}.mlp", self._norm(f"{name}.norm2", x), x)

    def _end(self, x: relax.Var) -> relax.Var:
        """What follows the last block."""
        return x

    def _attention(self, name: str, x: relax.Var, addend: relax.Var | None) -> relax.Var:
        spec = self.spec
        heads = PanelHeads(spec.heads, spec.head_dim, spec.head_dim**-0.5, turned=bool(self.turns))
        qkv = self._linear(f"{name}.qkv", x, PanelMatrix(3 * spec.width, spec.width, bias=True))
        make = lambda: panel_attention.panel_attention(heads)  # noqa: E731
        given = [qkv, *self.turns, relax.prim_value(self._tokens)]
        attended = self._call("attention", heads, make, given, self._type(spec.width))
        return self._linear(f"{name}.out", attended, PanelMatrix(spec.width, spec.width, bias=True), addend)

    def _mlp(self, name: str, x: relax.Var, addend: relax.Var | None) -> relax.Var:
        spec = self.spec
        opened = PanelMatrix(spec.mlp_width, spec.width, bias=True, activation=str(spec.activation))
        inner = self._linear(f"{name}.fc1", x, opened)
        return self._linear(f"{name}.fc2", inner, PanelMatrix(spec.width, spec.mlp_width, bias=True), addend)

    def _linear(self, name: str, x: relax.Var, matrix: PanelMatrix, addend: relax.Var | None = None) -> relax.Var:
        """A layer whose input is rounded, once or twice, or one whose matrix is float16."""
        full = f"{VISION}.{name}"
        grid = self._grids.get(full, TOKEN_GRID)
        if not grid:
            return self._float_linear(name, x, replace(matrix, addend=addend is not None), addend)
        zero = ACTIVATED_ZERO if full.endswith(ACTIVATED) else ZERO
        finer = FINER if rounds_finely(full, grid) else 0
        packed = relax.TensorType((self._panels, matrix.columns // panel_product.FOUR, PANEL), "int32")
        types = [packed, relax.TensorType((self._panels, PANEL), "float32"), *([packed] if finer else [])]
        make = lambda: panel_rows.rounded(matrix.columns, HIGHEST, zero, finer, ZERO)  # noqa: E731
        rounded = self._call("rounded", (matrix.columns, zero, finer), make, [x], types)
        codes, scales, *left = (self._builder.emit(relax.TupleGetItem(rounded, at)) for at in range(len(types)))
        weights = [
            self._parameter(f"{name}.weight_codes", matrix.rows, matrix.columns, dtype="int8"),
            self._parameter(f"{name}.weight_scales", matrix.rows),
        ]
        matrix = replace(matrix, addend=addend is not None)
        if left:
            # what is left over first: the layer's bias and activation come last
            alone = PanelMatrix(matrix.rows, matrix.columns, addend=matrix.addend)
            addend = self._product(alone, ZERO, 1 / FINER, [left[0], scales, *weights], addend)
            matrix = replace(matrix, addend=True)
        return self._product(matrix, zero, 1.0, [codes, scales, *weights, *self._bias(name, matrix)], addend)

    def _float_linear(self, name: str, x: relax.Var, matrix: PanelMatrix, addend: relax.Var | None) -> relax.Var:
        weight = self._parameter(f"{name}.weight", matrix.rows, matrix.columns, dtype="float16")
        given = [x, weight, *self._bias(name, matrix), *([addend] if addend is not None else [])]
        make = lambda: panel_product.float_product(matrix, "float16")  # noqa: E731
        return self._call("float_product", matrix, make, given, self._type(matrix.rows))

    def _bias(self, name: str, matrix: PanelMatrix) -> list[relax.Var]:
        return [self._parameter(f"{name}.bias", matrix.rows)] if matrix.bias else []

    def _product(
        self, matrix: PanelMatrix, zero: int, factor: float, given: list[relax.Expr], addend: relax.Var | None
    ) -> relax.Var:
        make = lambda: panel_product.byte_product(matrix, zero, factor)  # noqa: E731
        arguments = [*given, *([addend] if addend is not None else [])]
        return self._call("product", (matrix, zero, factor), make, arguments, self._type(matrix.rows))

    def _norm(self, name: str, x: relax.Var, addend: relax.Var | None = None) -> relax.Var:
        spec = self.spec
        weights = [self._parameter(f"{name}.{part}", spec.width) for part in ("weight", "bias")]
        make = lambda: panel_rows.layer_norm(spec.width, spec.norm_eps, addend is not None)  # noqa: E731
        given = [x, *weights, *([addend] if addend is not None else [])]
        return self._call("norm", ("norm", addend is not None), make, given, self._type(spec.width))

    def _type(self, channels: int) -> relax.TensorType:
        return relax.TensorType((self._panels, channels, PANEL), "float32")

    def _parameter(self, name: str, *shape: int, dtype: str = "float32") -> relax.Var:
        """A parameter of the array of them. What it is the runtime has checked; the machine would in every call."""
        number = next((at for at, known in enumerate(self.parameters) if known.name == name), len(self.parameters))
        if number == len(self.parameters):
            self.parameters.append(Parameter(name, dtype, shape))
        kind = relax.TensorType(shape, dtype)
        entry = relax.call_pure_packed("vm.builtin.tuple_getitem", self._held, relax.prim_value(number), ty_args=kind)
        return self._builder.emit(entry)

    def _call(
        self,
        name: str,
        key: object,
        make: Callable[[], tirx.PrimFunc],
        given: list[relax.Expr],
        out: Any,
    ) -> relax.Var:
        """Run a kernel, made once for each key."""
        if (name, key) not in self._kernels:
            # a module names its functions itself
            made = make().without_attr("global_symbol")
            self._kernels[name, key] = self._builder.add_func(made, name)
        return self._builder.emit(relax.call_tir(self._kernels[name, key], given, out))
