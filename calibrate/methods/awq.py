"""AWQ: input columns that matter are made larger before rounding, and what feeds them smaller, so that nothing is added.

Columns are multiplied by ``c = a^t / mean`` with a the root mean square of the inputs, t the strength of least output
error after rounding with searched clips (0 changes nothing); the operation before the layer is divided by the same numbers
(`export.quantisation.folds`). Afterwards the layer is rounded with searched clips. Source: Lin et al., arXiv 2306.00978;
mit-han-lab/llm-awq, awq/quantize/auto_scale.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from calibrate.methods.base import LayerProblem, Method
from calibrate.methods.clip import rounded, searched
from calibrate.methods.mse_clip import MseClip
from calibrate.statistics.moments import output_error
from export.quantisation.codes import Codes

if TYPE_CHECKING:
    from torch import Tensor

STRENGTHS = tuple(step / 10 for step in range(1, 10))
LEAST = 1e-4
"""Factors stay within this and its inverse."""


class Awq:
    """Factors for input columns, then codes of the scaled layer: `scale` comes before `run`.

    Args:
        codes: the method that chooses the scaled layer's codes; rounding with searched clips without one.
    """

    name: ClassVar[str] = "awq"
    title: ClassVar[str] = "AWQ, scales folded into the weights before"
    longer: ClassVar[bool] = True

    def __init__(self, codes: Method | None = None) -> None:
        self._codes = codes or MseClip()

    def run(self, layer: LayerProblem) -> Codes:
        """Codes of the layer, whose columns and moment have been scaled by the factors that `scale` gave."""
        return self._codes.run(layer)

    def scale(self, layers: Sequence[LayerProblem], share: int = 1, heads: int = 1) -> Tensor | None:
        """Factors (columns,) for the layers that read one input, or None when none lowers their output error.

        Args:
            share, heads: inputs that one source channel feeds: columns are (heads, share, rest), and all of ``share``
                must get the same factor (grouped-query attention).
        """
        import torch

        layers = [layer for layer in layers if layer.moment is not None and layer.moment.count]
        if not layers:
            return None
        power = torch.stack([layer.moment.diagonal / layer.moment.count for layer in layers if layer.moment]).mean(0)
        size = power.sqrt().view(heads, share, -1)
        # query heads that share a key/value head read the same value rows, which can be divided by one factor only
        size = size.mean(1, keepdim=True).expand_as(size).reshape(-1).clamp_min(1e-8)
        least, best = _errors(layers, None), None
        for strength in STRENGTHS:
            factors = size.pow(strength)
            # the geometric middle of the largest and the least is 1
            factors = (factors / (factors.max() * factors.min()).sqrt()).clamp(LEAST, 1 / LEAST)
            error = _errors(layers, factors)
            if error < least:
                least, best = error, factors
        return best


def _errors(layers: Sequence[LayerProblem], factors: Tensor | None) -> float:
    """Summed output error of all layers when their columns are multiplied before rounding and divided after."""
    total = 0.0
    for given in layers:
        layer = given
        if factors is not None and given.moment is not None:
            layer = LayerProblem(given.name, given.weight * factors, given.grid, given.moment.scaled(1 / factors))
        parameters = searched(layer, refits=0)
        change = layer.change(layer.codes(rounded(layer, parameters), parameters))
        total += float(output_error(change, layer.moment).sum())
    return total
