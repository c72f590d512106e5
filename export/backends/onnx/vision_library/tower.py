"""A plain vision transformer, which adds positions to its patches: `export.modules.vision.transformer` in panels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import relax, tirx

from export.backends.onnx.decoder_library.values import Parameter
from export.backends.onnx.vision_library.panel_tower import PanelTower
from export.modules.vision.specs import NormPlacement, PositionKind, VisionSpec
from export.processor import panel_product, panel_rows
from export.processor.panel_product import PanelMatrix
from export.processor.panel_rows import COLOURS

POSITIONS, CLASS_POSITION = "positions", "class_position"

MOST_TOKENS = 16384
"""Of a picture of any size: a grid of 128 x 128 patches."""


class Tower(PanelTower[VisionSpec]):
    """Takes pixels float32 (3, height, width), and positions float32 (tokens, width) of them and of the class token."""

    def __init__(self, spec: VisionSpec, chosen: Mapping[str, str]) -> None:
        super().__init__(spec, chosen)
        self.first = int(spec.class_token)
        self.dropped = self.first - int(spec.emit_class_token and spec.class_token)
        self.kind = str(spec.positions)
        fixed = spec.positions is PositionKind.FIXED
        rows, columns = (fixed and spec.grid) or (spec.native_grid, spec.native_grid)
        self._table = rows * columns
        self.most = self._table + self.first if fixed else MOST_TOKENS

    def tables(self) -> list[Parameter]:
        width, names = self.spec.width, (POSITIONS, CLASS_POSITION)[: 1 + self.first]
        return [Parameter(name, "float32", (rows, width)) for name, rows in zip(names, (self._table, 1), strict=False)]

    def told(self, tables: list[Any]) -> dict[str, Any]:
        return {"side": self.spec.native_grid, "table": tables[0], "first": tables[1:]}

    def _arguments(self) -> list[relax.Var]:
        sides = [tirx.Var(name, "int64") for name in ("height", "width")]
        pixels = relax.Var("pixels", relax.TensorType((COLOURS, *sides), "float32"))
        return [pixels, relax.Var("positions", relax.TensorType((self._tokens, self.spec.width), "float32"))]

    def _begin(self, *given: relax.Var) -> relax.Var:
        spec, (pixels, positions) = self.spec, given
        side, columns = spec.patch_size, COLOURS * spec.patch_size**2
        make = lambda: panel_rows.patches(side, self.first)  # noqa: E731
        cut = self._call("patches", "patches", make, [pixels], self._type(columns))
        matrix = PanelMatrix(spec.width, columns, bias=spec.patch_bias)
        weights = [cut, self._parameter("patch.weight", spec.width, columns)]
        weights += [self._parameter("patch.bias", spec.width)] if spec.patch_bias else []
        made = lambda: panel_product.float_product(matrix)  # noqa: E731
        embedded = self._call("patch", matrix, made, weights, self._type(spec.width))
        special = [self._parameter("class_token", 1, spec.width)] if spec.class_token else []
        place = lambda: panel_rows.positioned(spec.width, spec.class_token)  # noqa: E731
        x = self._call("positioned", "positioned", place, [embedded, positions, *special], self._type(spec.width))
        return self._norm("input_norm", x) if spec.input_norm else x

    def _block(self, name: str, x: relax.Var) -> relax.Var:
        if self.spec.norm_placement is NormPlacement.PRE:
            return super()._block(name, x)
        x = self._norm(f"{name}.norm1", self._attention(f"{name}.attention", x, None), x)
        return self._norm(f"{name}.norm2", self._mlp(f"{name}.mlp", x, None), x)

    def _end(self, x: relax.Var) -> relax.Var:
        return self._norm("norm", x) if self.spec.final_norm else x
