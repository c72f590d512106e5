"""The grids that the destinations store: which codes exist, how a group's scale is chosen, how a code is read back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from calibrate.codes import Codes


class Grid(Protocol):
    """One destination's integer grid; groups run along the input axis (columns)."""

    name: str
    bits: int
    group: int

    def quantise(self, rows: Tensor) -> Codes:
        """Round float32 (rows, columns) to codes; the tail group's statistics cover what exists."""
        ...

    def dequantise(self, codes: Codes) -> Tensor:
        """float32 (rows, groups * group) exactly as the destination's kernel reads it."""
        ...


GRIDS: dict[str, Grid] = {}
"""All grids by name; each grid module registers its instances here."""
