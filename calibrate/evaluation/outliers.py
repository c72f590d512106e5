"""A demo's weights with outlier channels: the same model in full precision, as hard to round as large language models are.

A trained demo has none, and rounds well. Large models have a few channels that are many times larger than the rest
(Dettmers et al., LLM.int8(), arXiv 2208.07339), and weights that read them matter most (Lin et al., AWQ, arXiv 2306.00978).
Here what makes an activation is multiplied in some channels, and the columns that read it are divided by as much.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from export.quantisation.folds import Fold, decoder_folds
from export.quantisation.overlay import OverlaidWeights, Overlay
from export.source.weight_map import WeightMap

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from export.checkpoint.opened import OpenedCheckpoint
    from export.specs import ModelSpec

SHARE = 1 / 16
"""Of the channels of every activation that a linear layer of the decoder reads; at least one."""


class OutlierWeights(WeightMap):
    """A checkpoint's weights with outlier channels, the same ones for the same seed.

    Args:
        size: how many times larger such a channel is.
    """

    def __init__(self, weights: WeightMap, spec: ModelSpec, size: float, seed: int = 0) -> None:
        import torch

        super().__init__(weights.rules.values(), weights.source, weights.ignored)
        overlay = Overlay()
        generator = torch.Generator().manual_seed(seed)
        for _, folds in decoder_folds(spec):
            for fold in folds:
                columns = weights.shape(f"{fold.layers[0]}.weight")[1]
                overlay.add(fold, _factors(fold, columns, size, generator), weights)
        self._overlaid = OverlaidWeights(weights, overlay)

    def tensor(self, target: str) -> Tensor:
        return self._overlaid.tensor(target)

    def rows(self, target: str, start: int, stop: int | None) -> Tensor:
        return self._overlaid.rows(target, start, stop)


def with_outliers(checkpoint: OpenedCheckpoint, size: float) -> OpenedCheckpoint:
    """The checkpoint with outlier channels ``size`` times larger than they were."""
    assert checkpoint.weights is not None
    return replace(checkpoint, weights=OutlierWeights(checkpoint.weights, checkpoint.spec, size))


def _factors(fold: Fold, columns: int, size: float, generator: Generator) -> Tensor:
    """Factors of a fold's columns (columns,): 1, and 1 / size where its source is to be larger."""
    import torch

    sources = columns // fold.share
    factors = torch.ones(sources)
    factors[torch.randperm(sources, generator=generator)[: max(1, int(SHARE * sources))]] = 1 / size
    return factors.view(fold.heads, 1, -1).expand(-1, fold.share, -1).reshape(-1)
