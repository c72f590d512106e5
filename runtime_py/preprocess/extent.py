"""What a picture will take, from its size alone: refused before a pixel is decoded rather than after the machine is full.

A slicing rule keeps the area of a piece and not its sides, so that a strip of one pixel by a million becomes thousands of
patches; a video's frame is scaled by its shorter side. The figures are an estimate that tests hold against what is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from runtime_py.errors import ImageError

MOST_BYTES = 3 << 30
"""A picture predicted to take more is refused. A photograph of 64 million pixels takes up to 2.7 GB, where a video model
normalises it in its own size; Qwen2-VL with its 12.8 million pixels takes 2.2 GB."""

DECODED_BYTES = 3
"""A pixel of the picture itself, uint8 RGB."""

PIXEL_BYTES = 3 + 3 * 12
"""A pixel of a piece: resized, then float32 RGB scaled, normalised and with channels first."""

PATCH_BYTES = 16 << 10
"""A patch in the vision encoder: the widest activations of the towers here, some 4,300 float32 numbers."""

FLOAT_BYTES = 4

MATRIX_BYTES = 12
"""A number of a resampling matrix: made in float64, kept in float32."""

Check = Callable[[str, int, int], None]
"""Receives a picture's name, width and height before it is decoded, and raises where it cannot be taken."""


@dataclass(frozen=True)
class Extent:
    """What a processor makes of one picture.

    Attributes:
        pixels: of all its pieces together.
        patches: of its longest piece.
        rows: of image features in the prompt.
        further: bytes of other arrays, e.g. matrices and position tables.
    """

    pixels: int
    patches: int
    rows: int
    further: int = 0

    def memory(self, width: int, height: int) -> int:
        """Bytes that a picture of this size takes until its features are there."""
        pieces = self.pixels * PIXEL_BYTES + self.patches * PATCH_BYTES + self.further
        return width * height * DECODED_BYTES + pieces


def square_extent(side: int, patch: int, rows: int, pieces: int = 1) -> Extent:
    """Of squares of one size, whatever the picture's."""
    return Extent(pieces * side * side, (side // patch) ** 2, rows)


@runtime_checkable
class PredictsExtent(Protocol):
    """Optional addition to `runtime_py.preprocess.base.Processor`."""

    def extent(self, width: int, height: int) -> Extent:
        """What a picture of this size becomes.

        Raises:
            ImageError: one that the published rule refuses.
        """
        ...


def check_extent(extent: Extent, context: int, name: str, width: int, height: int) -> None:
    """Raise ImageError for a picture that takes too much memory, or more of a prompt than a context holds."""
    needed = extent.memory(width, height)
    if needed > MOST_BYTES:
        raise ImageError(
            f"{name} is {width} x {height} pixels, of which this model makes {extent.pixels:,} pixels in pieces of up to "
            f"{extent.patches:,} patches: {needed / 1e9:.1f} GB of memory",
            f"a picture that takes at most {MOST_BYTES / 1e9:.1f} GB",
            "cut it into pieces, or make it smaller",
        )
    if extent.rows >= context:
        raise ImageError(
            f"{name} is {width} x {height} pixels, which makes {extent.rows:,} rows of the prompt",
            f"fewer than {context:,}, the context this package was built for",
            "make the picture smaller, or export with a larger --context",
        )
