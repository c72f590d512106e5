"""The grids that the destinations store: which codes exist, how a group's scale is chosen, how a code is read back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from export.quantisation.codes import Codes, GroupParameters


class Grid(Protocol):
    """One destination's integer grid; groups run along the input axis (columns).

    `quantise` and `dequantise` serve packages. `fit`, `round`, `read` and `codes` let a calibration method choose a group's
    parameters, round what values it likes with them, and see them as the destination's kernel will.
    """

    @property
    def name(self) -> str: ...

    @property
    def bits(self) -> int: ...

    @property
    def group(self) -> int:
        """Columns that share a scale; 0 when a whole row does."""
        ...

    @property
    def highest(self) -> int:
        """The largest code; the smallest is 0."""
        ...

    @property
    def zero_points(self) -> bool:
        """Whether every group stores a zero point of its own."""
        ...

    @property
    def negative_scales(self) -> bool:
        """Whether a scale may be negative, which moves the odd code to the positive side."""
        ...

    @property
    def alike(self) -> frozenset[str]:
        """Names of other grids whose codes mean the same here, once their scales are stored as this one stores them."""
        ...

    def quantise(self, rows: Tensor) -> Codes:
        """Round float (rows, columns), as float32, to codes; the tail group's statistics cover what exists."""
        ...

    def dequantise(self, codes: Codes) -> Tensor:
        """float32 (rows, groups * group) exactly as the destination's kernel reads it."""
        ...

    def adopted(self, codes: Codes) -> Codes:
        """Codes of a grid of `alike`, with their scales as this one stores them."""
        ...

    def fit(self, blocks: Tensor, factor: Tensor | float = 1.0) -> GroupParameters:
        """Parameters of groups of float32 values (..., group) whose range is ``factor`` (...) times what they span.

        1 gives what `quantise` stores; less clips the extremes; a negative factor turns the scale's sign round.
        """
        ...

    def stored_scales(self, scales: Tensor) -> Tensor:
        """Scales as the file holds them, widened to float32."""
        ...

    def round(self, values: Tensor, parameters: GroupParameters) -> Tensor:
        """The nearest codes as float32; ``values`` and the parameters broadcast against each other."""
        ...

    def read(self, codes: Tensor, parameters: GroupParameters) -> Tensor:
        """Codes back to float32, element by element as `dequantise` does."""
        ...

    def codes(self, codes: Tensor, parameters: GroupParameters) -> Codes:
        """What a package stores, of codes (rows, columns) and parameters (rows, groups); the tail is padded."""
        ...


class _StoredGrids(Mapping[str, Grid]):
    """Read anew at every look, so that a backend's grids are there as long as the backend is registered."""

    def __getitem__(self, name: str) -> Grid:
        return _stored()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_stored())

    def __len__(self) -> int:
        return len(_stored())


def _stored() -> Mapping[str, Grid]:
    # the records of backends hold grids, whose modules come back to this one
    from export.backends.registry import grids

    return grids()


GRIDS: Mapping[str, Grid] = _StoredGrids()
"""The grids that all backends store, by name."""
