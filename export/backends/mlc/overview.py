"""The square picture that the phone's engine hands to ``image_embed``, and the side inputs that go with its grid.

The engine sends one square of `SentPicture.image_size` pixels, the picture in its upper left corner. Where a family's stages
take side inputs (the position matrices and key positions of a sliced model), those of this one grid are stored as parameters
of the package, made by the family's own processor from a blank picture, so that the phone computes nothing that it knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from export.specs import ModelSpec
from export.stages import contracts
from runtime_py.backends.stock_engine import SentPicture
from runtime_py.contracts import CONNECTOR, VISION
from runtime_py.errors import UnsupportedModelError
from runtime_py.preprocess.base import Processor

if TYPE_CHECKING:
    from torch import Tensor

    from export.quantisation.codes import WeightProvider

PREFIX = "overview."


@dataclass(frozen=True)
class Overview:
    """The picture, in pixels and patches.

    Attributes:
        sent: what an app sends; None where the engine can do nothing right with a picture, and no function takes one.
        grid: (rows, columns) of patches.
        sides: the side inputs of that grid by name; none where nothing is sent.
    """

    sent: SentPicture | None
    grid: tuple[int, int]
    sides: Mapping[str, np.ndarray]


def make_overview(spec: ModelSpec, processor: Processor, sent: SentPicture | None) -> Overview:
    """The overview of a model.

    Args:
        sent: what `export.backends.mlc.stock_engine` says that an app sends.

    Raises:
        UnsupportedModelError: as `overview_sides`.
    """
    side = spec.image.overview // spec.image.patch
    return Overview(sent, (side, side), {} if sent is None else overview_sides(spec, processor, sent.rows))


def overview_sides(spec: ModelSpec, processor: Processor, rows: int) -> dict[str, np.ndarray]:
    """The side inputs of the overview by name, as the model's processor makes them.

    Raises:
        UnsupportedModelError: the processor turns a square picture of that size into something else than ``rows`` rows.
    """
    size = spec.image.overview
    wanted = [tensor.name for stage in (VISION, CONNECTOR) for tensor in contracts(spec)[stage].inputs[1:]]
    if not wanted:
        return {}
    pieces = processor.images([np.zeros((size, size, 3), np.uint8)])
    arrays: dict[str, Any] = {**pieces[0].vision, **pieces[0].connector}
    cells = arrays["pixel_values"].shape
    whole = cells[1] == (size // spec.image.patch) ** 2 if len(cells) == 3 else cells[2:] == (size, size)
    if len(pieces) != 1 or not whole or pieces[0].rows != rows:
        raise UnsupportedModelError(
            f"{spec.family}: a {size} x {size} picture does not pass its processor unchanged",
            f"one piece of the same size and {rows} rows, as the phone's engine sends one square picture",
            "give the family an overview that its processor leaves alone (ModelSpec.image)",
        )
    return {name: np.asarray(arrays[name]) for name in wanted}


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
