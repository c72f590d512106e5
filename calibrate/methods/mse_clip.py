"""Round to nearest, with clips searched by their effect on the layer's output."""

from __future__ import annotations

from typing import ClassVar

from calibrate.methods.base import LayerProblem
from calibrate.methods.clip import rounded, searched
from export.quantisation.codes import Codes


class MseClip:
    """Every weight to its nearest code; only the groups' parameters are chosen."""

    name: ClassVar[str] = "mse-clip"
    title: ClassVar[str] = "round to nearest, clips searched by output error"
    longer: ClassVar[bool] = False

    def run(self, layer: LayerProblem) -> Codes:
        """Nearest codes with each group's clip of least output error; plain squares for a layer without a moment."""
        parameters = searched(layer)
        return layer.codes(rounded(layer, parameters), parameters)
