"""A plain vision transformer as one Relax function over panels of tokens (`export.processor.token_panels`).

It says what `export.modules.vision.transformer` says, of layers as `export.backends.onnx.int8_linear` rounds them; matrices
are those of the graph's data file. A call takes one picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tvm import relax, tirx

from export.backends.onnx.choices import rounds_finely
from export.backends.onnx.decoder_library.values import Parameter
from export.backends.onnx.int8_linear import ACTIVATED, ACTIVATED_ZERO, FINER, HIGHEST, ZERO
from export.backends.onnx.record import TOKEN_GRID
from export.processor import panel_attention, panel_product, panel_rows
from export.processor.panel_attention import PanelHeads
from export.processor.panel_product import PanelMatrix
from export.processor.panel_rows import COLOURS
from export.processor.token_panels import PANEL
from export.specs import NormPlacement, VisionSpec
from runtime_py.backends.vision_library import TOWER
from runtime_py.contracts import VISION


class Tower:
    """Writes the function of one tower.

    Args:
        chosen: grids of layers that a choice gave another one, "" for those whose matrices are float16.

    Attributes:
        parameters: those that the function takes, in the order of its tuple.
    """

    def __init__(self, spec: VisionSpec, chosen: Mapping[str, str]) -> None:
        self.spec, self.first, self._grids = spec, int(spec.class_token), chosen
        self.parameters: list[Parameter] = []
        self._builder = relax.BlockBuilder()
        self._kernels: dict[object, relax.GlobalVar] = {}

    def module(self) -> Any:
        """The Relax module with `TOWER`: pixels float32 (3, height, width), positions float32 (tokens, width) of them
        and of the class token, and parameters to float32 (tokens, width).
        """
        spec, self._tokens = self.spec, tirx.Var("tokens", "int64")
        sides = [tirx.Var(name, "int64") for name in ("height", "width")]
        self._panels = (self._tokens + (PANEL - 1)) // PANEL
        pixels = relax.Var("pixels", relax.TensorType((COLOURS, *sides), "float32"))
        positions = relax.Var("positions", relax.TensorType((self._tokens, spec.width), "float32"))
        self._held = relax.Var("parameters", relax.ObjectType())
        with self._builder.function(TOWER, [pixels, positions, self._held]):
            with self._builder.dataflow():
                x = self._begin(pixels, positions)
                for number in range(spec.layers):
                    x = self._block(f"blocks.{number}", x)
                if spec.final_norm:
                    x = self._norm("norm", x)
                dropped = self.first - int(spec.emit_class_token and spec.class_token)
                kept = relax.TensorType((self._tokens - dropped, spec.width), "float32")
                make = lambda: panel_rows.tokens(spec.width, dropped)  # noqa: E731
                result = self._builder.emit_output(self._call("tokens", ("tokens", dropped), make, [x], kept))
            self._builder.emit_func_output(result)
        return self._builder.finalize()

    def _begin(self, pixels: relax.Var, positions: relax.Var) -> relax.Var:
        spec = self.spec
        side, columns = spec.patch_size, COLOURS * spec.patch_size**2
        make = lambda: panel_rows.patches(side, self.first)  # noqa: E731
        cut = self._call("patches", "patches", make, [pixels], self._type(columns))
        matrix = PanelMatrix(spec.width, columns, bias=spec.patch_bias)
        given = [cut, self._parameter("patch.weight", spec.width, columns)]
        given += [self._parameter("patch.bias", spec.width)] if spec.patch_bias else []
        made = lambda: panel_product.float_product(matrix)  # noqa: E731
        embedded = self._call("patch", matrix, made, given, self._type(spec.width))
        special = [self._parameter("class_token", 1, spec.width)] if spec.class_token else []
        place = lambda: panel_rows.positioned(spec.width, spec.class_token)  # noqa: E731
        x = self._call("positioned", "positioned", place, [embedded, positions, *special], self._type(spec.width))
        return self._norm("input_norm", x) if spec.input_norm else x

    def _block(self, name: str, x: relax.Var) -> relax.Var:
        if self.spec.norm_placement is NormPlacement.PRE:
            x = self._attention(f"{name}.attention", self._norm(f"{name}.norm1", x), x)
            return self._mlp(f"{name}.mlp", self._norm(f"{name}.norm2", x), x)
        x = self._norm(f"{name}.norm1", self._attention(f"{name}.attention", x, None), x)
        return self._norm(f"{name}.norm2", self._mlp(f"{name}.mlp", x, None), x)

    def _attention(self, name: str, x: relax.Var, addend: relax.Var | None) -> relax.Var:
        spec = self.spec
        heads = PanelHeads(spec.heads, spec.head_dim, spec.head_dim**-0.5)
        qkv = self._linear(f"{name}.qkv", x, PanelMatrix(3 * spec.width, spec.width, bias=True))
        make = lambda: panel_attention.panel_attention(heads)  # noqa: E731
        given = [qkv, relax.prim_value(self._tokens)]
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
        return self._product(
            matrix, zero, 1.0, [codes, scales, *weights, self._parameter(f"{name}.bias", matrix.rows)], addend
        )

    def _float_linear(self, name: str, x: relax.Var, matrix: PanelMatrix, addend: relax.Var | None) -> relax.Var:
        weight = self._parameter(f"{name}.weight", matrix.rows, matrix.columns, dtype="float16")
        given = [x, weight, self._parameter(f"{name}.bias", matrix.rows), *([addend] if addend is not None else [])]
        make = lambda: panel_product.float_product(matrix, "float16")  # noqa: E731
        return self._call("float_product", matrix, make, given, self._type(matrix.rows))

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
