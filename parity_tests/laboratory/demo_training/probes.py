"""Throw-away heads that teach a vision tower and a connector what lies where, before a decoder can use it."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from export.demo.pictures import COLOURS, KINDS, Scene

COLOUR_NAMES = tuple(COLOURS)


class Probes(nn.Module):
    """Throw-away linear heads: kind and colour of what lies under each patch (from the vision features), and the same with
    the place itself for each row of image features, so that a row can be found and read on its own.
    """

    def __init__(self, vision_width: int, row_width: int, rows: int) -> None:
        super().__init__()
        things = len(KINDS) + 1 + len(COLOUR_NAMES) + 1
        self.patches = nn.Linear(vision_width, things)
        self.rows = nn.Linear(row_width, things + rows)

    def forward(self, features: Tensor, rows: Tensor, patches: Tensor, held: Tensor, cells: Tensor) -> dict[str, Tensor]:
        """Losses against (pictures, places, 2) kind and colour targets and the cell (places,) that each row stands for, and
        the share of things whose kind is right.
        """
        scores = self.rows(rows)
        places = scores[..., len(KINDS) + len(COLOUR_NAMES) + 2 :].transpose(1, 2)
        own = cells.expand(rows.shape[0], -1)
        right = scores[..., : len(KINDS) + 1].argmax(-1) == held[..., 0]
        return {
            "patches": self._loss(self.patches(features), patches),
            "rows": self._loss(scores, held),
            "places": F.cross_entropy(places, own),
            "kinds right": right[held[..., 0] > 0].float().mean(),
        }

    @staticmethod
    def _loss(scores: Tensor, targets: Tensor) -> Tensor:
        """Mean over the places that hold something plus mean over the others, for kinds and for colours."""
        split, end = len(KINDS) + 1, len(KINDS) + len(COLOUR_NAMES) + 2
        held = targets[..., 0] > 0
        kinds = F.cross_entropy(scores[..., :split].transpose(1, 2), targets[..., 0], reduction="none")
        colours = F.cross_entropy(scores[..., split:end].transpose(1, 2), targets[..., 1], reduction="none")
        both = kinds + colours
        return 0.5 * (both[held].mean() + both[~held].mean())


def probe_targets(scene: Scene, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Kind and colour (0: nothing) in each place of a ``grid`` of rows and columns: int64 (places, 2).

    A thing is in the place of its middle and in every place whose own middle it covers.
    """
    rows, columns = grid
    cells = np.zeros((rows, columns, 2), dtype=np.int64)
    middle_y, middle_x = (np.arange(rows)[:, None] + 0.5) / rows, (np.arange(columns)[None] + 0.5) / columns
    for item in scene.items:
        target = (KINDS.index(item.kind) + 1, COLOUR_NAMES.index(item.colour) + 1)
        reach_x, reach_y = (item.radius * min(size) / length for length in size)
        cells[(np.abs(middle_x - item.x) < reach_x) & (np.abs(middle_y - item.y) < reach_y)] = target
        cells[int(item.y * rows), int(item.x * columns)] = target
    return cells.reshape(-1, 2)
