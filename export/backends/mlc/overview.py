"""The square picture that the phone's engine hands to ``image_embed``, and the side inputs that go with its grid.

The engine sends one picture of ``image_size`` x ``image_size`` pixels. Where a family's stages take side inputs (the
position matrices and key positions of a sliced model), those of this one grid are stored as parameters of the package,
made by the family's own processor from a blank picture, so that the phone computes nothing a processor knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from export.specs import ModelSpec
from export.stages import contracts
from runtime_py.contracts import CONNECTOR, VISION
from runtime_py.errors import UnsupportedModelError
from runtime_py.preprocess.base import Processor

if TYPE_CHECKING:
    from torch import Tensor

    from export.quantisation.codes import WeightProvider

PREFIX = "overview."


@dataclass(frozen=True)
class Overview:
    """``image_size`` pixels a side, ``grid`` (rows, columns) of patches, ``rows`` of image features, and the side inputs
    of that grid by name.
    """

    image_size: int
    grid: tuple[int, int]
    rows: int
    sides: Mapping[str, np.ndarray]


def make_overview(spec: ModelSpec, processor: Processor) -> Overview:
    """The overview of a model, side inputs as its processor makes them.

    Raises:
        UnsupportedModelError: the processor turns a square picture of that size into something else.
    """
    size = spec.image.overview
    grid = (size // spec.image.patch, size // spec.image.patch)
    wanted = [tensor.name for stage in (VISION, CONNECTOR) for tensor in contracts(spec)[stage].inputs[1:]]
    if not wanted:
        rows = contracts(spec)[CONNECTOR].outputs[0].shape[1]
        assert isinstance(rows, int)
        return Overview(size, grid, rows, {})
    pieces = processor.images([np.zeros((size, size, 3), np.uint8)])
    arrays: dict[str, Any] = {**pieces[0].vision, **pieces[0].connector}
    cells = arrays["pixel_values"].shape
    whole = cells[1] == grid[0] * grid[1] if len(cells) == 3 else cells[2:] == (size, size)
    if len(pieces) != 1 or not whole:
        raise UnsupportedModelError(
            f"{spec.family}: a {size} x {size} picture does not pass its processor unchanged",
            "one piece of the same size, as the phone's engine sends one square picture",
            "give the family an overview that its processor leaves alone (ModelSpec.image)",
        )
    return Overview(size, grid, pieces[0].rows, {name: np.asarray(arrays[name]) for name in wanted})


def overview_shapes(spec: ModelSpec, overview: Overview) -> dict[str, tuple[int, ...]]:
    """Shapes of the stored side inputs by name."""
    return {name: tuple(array.shape) for name, array in overview.sides.items()}


class WithOverview:
    """A WeightProvider that also holds the overview's side inputs under ``overview.``."""

    def __init__(self, weights: WeightProvider, overview: Overview) -> None:
        self.weights, self.overview = weights, overview

    def shape(self, target: str) -> tuple[int, ...]:
        side = self._side(target)
        return self.weights.shape(target) if side is None else tuple(side.shape)

    def tensor(self, target: str) -> Tensor:
        return self.weights.tensor(target) if self._side(target) is None else self.rows(target, 0, None)

    def rows(self, target: str, start: int, stop: int | None) -> Tensor:
        side = self._side(target)
        if side is None:
            return self.weights.rows(target, start, stop)
        import torch

        return torch.from_numpy(np.ascontiguousarray(side[start:stop], np.float32))

    def _side(self, target: str) -> np.ndarray | None:
        return self.overview.sides.get(target.removeprefix(PREFIX)) if target.startswith(PREFIX) else None
