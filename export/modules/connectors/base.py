"""What a kind of connector says of itself, so that nothing else asks which kind it is.

A kind is a frozen dataclass under `ConnectorSpec`. Its PyTorch module and its Relax block are named, not imported: a plan
needs neither, and a family in a folder or a distribution of its own brings all three without an entry in any list.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from runtime_py.contracts import Dimension, TensorContract
from runtime_py.errors import UnsupportedModelError

OPEN_ROWS = "image_rows"
"""The axis of rows whose number follows from the picture."""


@dataclass(frozen=True)
class ConnectorSpec(ABC):
    """Sizes of what brings the rows of a vision encoder to the width of the decoder.

    Attributes:
        vision_width: values of a row that comes in.
        width: values of a row that goes out.
        module: ``package.module:Class`` of the PyTorch module, called as ``Class(spec, kernels)``; its ``forward`` takes the
            vision features (images, tokens, vision_width) and the `side_inputs`, and gives (images, rows, width).
        block: the same of the Relax block of a kind that a family brings, called as ``Class(spec, layers)``; its ``forward``
            takes the features of one image and the side inputs by name. "" for none: such a model has no MLC package.
    """

    vision_width: int
    width: int
    module: ClassVar[str]
    block: ClassVar[str] = ""

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


def named_class(spec: ConnectorSpec, reference: str) -> Any:
    """The class that ``package.module:Class`` names, one of a spec's.

    Raises:
        UnsupportedModelError: there is none.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{type(spec).__name__} names {reference!r}, which cannot be imported: {error}",
            "package.module:Class of what builds this connector",
            f"correct it in {type(spec).__module__}; docs/adding_a_family.md says what it names",
        ) from error
