"""Optimisation profiles: the sizes each engine is built for, from the contracts and the target's limits.

One engine per stage, however many ways it is called. An int4 decoder has one profile for a prompt chunk, one for a single
token and one for a token of each of several sequences, a float decoder one for all. A vision encoder of free picture sizes
has one for each orientation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from export.specs import DecoderSpec, ImageSpec, ModelSpec
from export.stages import contracts
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, VISION, StageContract
from runtime_py.errors import UnsupportedModelError
from targets.base import Limits

Range = tuple[int, int, int]
"""Least, typical and greatest size of an axis."""

Axes = dict[str, Range]
"""Range of every open axis of a stage by its name in the contract."""

ONE: Range = (1, 1, 1)

Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Least, typical and greatest shape of each input."""

ELONGATION = 4
"""The longest side of a picture's grid, in multiples of the typical side, that a profile covers (sides 16 : 1)."""


@dataclass(frozen=True)
class Profile:
    """One way of calling an engine. ``name`` is for people; ``shapes`` has every input."""

    name: str
    shapes: Shapes


def stage_profiles(
    spec: ModelSpec, stage: str, contract: StageContract, limits: Limits, packed: bool = True
) -> list[Profile]:
    """The profiles of a stage, the most used first where they overlap.

    Args:
        packed: the decoder's weights are int4.
    """
    return [Profile(name, _shapes(contract, axes)) for name, axes in _axes(spec, stage, limits, packed).items()]


def check_profiles(spec: ModelSpec, limits: Limits, packed: bool) -> None:
    """Work out the profiles of every stage.

    Raises:
        UnsupportedModelError: an axis of a stage that no profile covers, by name.
    """
    for stage, contract in contracts(spec).items():
        stage_profiles(spec, stage, contract, limits, packed)


def _axes(spec: ModelSpec, stage: str, limits: Limits, packed: bool) -> dict[str, Axes]:
    """Profile name to the range of every open axis of a stage."""
    if stage == EMBED:  # tokens of several sequences come as those of one
        step: Axes = {"batch": ONE, "tokens": ONE}
        return {"decode": step, "prefill": {"batch": ONE, "tokens": (1, min(256, limits.context), limits.context)}}
    if stage == DECODER:
        # profiles share int4 weights (40 layers: 1,574 MB for 1,541 MB), but store float weights twice where they want
        # other layouts (4 layers: 1,399 MB for 1,055 MB)
        calls = _decoder(spec.decoder, limits)
        return calls if packed else {"any": {**calls["prefill"], "batch": (1, 1, limits.batch)}}
    pictures = _connector_grids(spec) if stage == CONNECTOR else _vision_grids(spec)
    return {name: {"images": ONE, **axes} for name, axes in pictures.items()}


def _decoder(decoder: DecoderSpec, limits: Limits) -> dict[str, Axes]:
    """One token, a chunk of a prompt, and a token of each of several sequences.

    Rows that an adapter picks out are any share of the chunk's; of one token, those of a text token.
    """
    chunk, context = limits.prefill_chunk, limits.context
    past: Axes = {"past": (context, context, context)}
    picked = decoder.layer_kind.own_axes(decoder)
    few: Axes = {axis: (size, size, size) for axis, size in picked.items()}
    some: Axes = dict.fromkeys(picked, (0, max(1, chunk // 2), chunk))
    decode: Axes = {"tokens": ONE, "outputs": ONE, "total": (1, max(1, context // 4), context)}
    prefill: Axes = {"tokens": (1, chunk, chunk), "outputs": (1, 1, chunk), "total": (1, chunk, context)}
    step: Axes = {"batch": ONE, **past, **decode, **few}
    chunks: Axes = {"batch": ONE, **past, **prefill, **some}
    rows: Axes = {**step, "batch": (2, limits.batch, limits.batch)}
    return {"decode": step, "prefill": chunks} | ({"rows": rows} if limits.batch > 1 else {})


def _vision_grids(spec: ModelSpec) -> dict[str, Axes]:
    """Sizes of a picture by orientation. One square size is no range at all; slices come with their grid's two axes, in
    boxes that hold no picture both wide and tall; whole pictures of any grid come in one.
    """
    image, side = spec.image, spec.image.typical // spec.image.patch
    if spec.vision.structure.grid is not None:
        return {"fixed": {}}
    if _sliced(spec):
        # one box of wide and tall sizes would hold their product too, a picture nobody sends, and reserve memory for it
        square, short, long = (1, side, _diagonal(side)), (1, side // 2, side), (1, 2 * side, side * ELONGATION)
        shapes = {"square": (square, square), "wide": (short, long), "tall": (long, short)}
        return {name: _box(image.patch, rows, columns) for name, (rows, columns) in shapes.items()}
    edge: Range = (image.patch, side * image.patch, _longest(image) * image.patch)
    return {"any": {**_connector_grids(spec)["any"], "height": edge, "width": edge}}


def _connector_grids(spec: ModelSpec) -> dict[str, Axes]:
    """Rows that a connector takes of one piece of a picture."""
    side, longest = spec.image.typical // spec.image.patch, _longest(spec.image)
    if spec.vision.structure.grid is not None:
        return {"fixed": {}}
    if _sliced(spec):
        return {"any": {"vision_tokens": (1, side * side, max(_diagonal(side) ** 2, side * side * ELONGATION))}}
    most = min(longest * longest, ELONGATION * side * side)
    return {"any": {"vision_tokens": (1, side * side, most), "cells": (1, max(1, side * side // 4), most)}}


def _sliced(spec: ModelSpec) -> bool:
    """Whether the tower takes a picture's grid by its two axes."""
    return any("grid_rows" in tensor.shape for tensor in contracts(spec)[VISION].inputs)


def _diagonal(side: int) -> int:
    """The longer side of a grid of as many patches as a square of ``side``, where it is no more than twice the shorter."""
    return round(side * math.sqrt(2))


def _longest(image: ImageSpec) -> int:
    """Patches along the longest side of a whole picture."""
    return image.longest // image.patch + 1 if image.longest else ELONGATION * (image.typical // image.patch)


def _box(patch: int, rows: Range, columns: Range) -> Axes:
    return {"grid_rows": rows, "grid_columns": columns, "height": _pixels(rows, patch), "width": _pixels(columns, patch)}


def _pixels(patches: Range, patch: int) -> Range:
    least, typical, greatest = patches
    return least * patch, typical * patch, greatest * patch


def _shapes(contract: StageContract, axes: Mapping[str, Range]) -> Shapes:
    shapes: Shapes = {}
    for tensor in contract.inputs:
        unknown = [axis for axis in tensor.shape if isinstance(axis, str) and axis not in axes]
        if unknown:
            raise UnsupportedModelError(
                f"stage {contract.stage}: input '{tensor.name}' has an axis '{unknown[0]}' that no TensorRT profile covers",
                f"axes {', '.join(sorted(axes)) or 'of fixed size'}",
                "export this model for another target, or add the axis to export/backends/tensorrt/profiles.py",
            )
        ranges = [axes[axis] if isinstance(axis, str) else (axis, axis, axis) for axis in tensor.shape]
        least, typical, greatest = (tuple(sizes[index] for sizes in ranges) for index in range(3))
        shapes[tensor.name] = (least, typical, greatest)
    return shapes
