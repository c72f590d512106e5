"""A tower whose positions turn queries and keys (Qwen2-VL's): `export.modules.vision.rotary_transformer` in panels."""

from __future__ import annotations

from tvm import relax

from export.backends.onnx.vision_library.panel_tower import PanelTower
from export.modules.vision.specs import RotaryVisionSpec
from export.processor import panel_rows
from export.processor.panel_product import PanelMatrix
from runtime_py.backends.vision_library import ROTARY

MOST_PATCHES = 65536
"""Of a picture: Qwen2-VL's have up to 12,845,056 pixels, 196 a patch."""


class RotaryTower(PanelTower[RotaryVisionSpec]):
    """Takes pixels float32 (tokens, patch_values), flattened patches, and turns float32 (tokens, head_dim), the cosines of
    each patch's angles and then their sines.
    """

    kind, most = ROTARY, MOST_PATCHES

    def _arguments(self) -> list[relax.Var]:
        columns = {"pixels": self.spec.patch_values, "turns": self.spec.head_dim}
        return [relax.Var(name, relax.TensorType((self._tokens, count), "float32")) for name, count in columns.items()]

    def _begin(self, *given: relax.Var) -> relax.Var:
        spec = self.spec
        pixels, turns = (
            self._gathered(rows, count) for rows, count in zip(given, (spec.patch_values, spec.head_dim), strict=True)
        )
        self.turns = [turns]
        return self._linear("patch", pixels, PanelMatrix(spec.width, spec.patch_values))

    def _gathered(self, rows: relax.Var, count: int) -> relax.Var:
        make = lambda: panel_rows.gathered(count)  # noqa: E731
        return self._call("gathered", count, make, [rows], self._type(count))
