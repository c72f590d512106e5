"""What a kind of connector says of itself, so that nothing else asks which kind it is.

A kind is a frozen dataclass under `ConnectorSpec`, which a family may have in its own folder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from export.modules.kind import Kind
from runtime_py.contracts import Dimension, TensorContract

OPEN_ROWS = "image_rows"
"""The axis of rows whose number follows from the picture."""


@dataclass(frozen=True)
class ConnectorSpec(Kind, ABC):
    """Sizes of what brings the rows of a vision encoder to the width of the decoder.

    Attributes:
        vision_width: values of a row that comes in.
        width: values of a row that goes out.
        module: see `Kind`; its ``forward`` takes the vision features (images, tokens, vision_width) and the `side_inputs`,
            and gives (images, rows, width).
        block: see `Kind`; called as ``Class(spec, layers)``, its ``forward`` takes the features of one image and the side
            inputs by name.
    """

    vision_width: int
    width: int

    @property
    @abstractmethod
    def rows(self) -> Dimension:
        """Rows of one image in the stage's contract: a number where it is fixed, else `OPEN_ROWS`."""

    @property
    def patches_per_row(self) -> int | None:
        """Patches that are joined into one row; None where the number of rows has nothing to do with that of patches."""
        return None

    def rows_of(self, grid: tuple[int, int]) -> int:
        """Rows of one image of (rows, columns) patches; a kind whose `rows` are open says it here."""
        if isinstance(self.rows, int):
            return self.rows
        raise NotImplementedError(f"{type(self).__name__} has open rows and no rows_of")

    def side_inputs(self, tokens: Dimension, dtype: str) -> tuple[TensorContract, ...]:
        """The stage's inputs behind ``vision_features``, in the order in which ``forward`` takes them.

        Args:
            tokens: vision rows of one image, as the contract has them.
            dtype: the float dtype at the borders of stages.
        """
        return ()
