"""Optimisation profiles: the sizes each engine is built for, from the contracts and the target's limits.

One engine per stage, however many ways it is called. An int4 decoder has one profile for a prompt chunk and one for a
single token: they share the weights (40 layers: 1,574 MB for 1,541 MB of weights). Float weights would be stored twice where
the two profiles want other layouts (4 layers: 1,399 MB for 1,055 MB), so a float decoder has one profile for both. A vision
encoder of free picture sizes has one for each orientation: a box of sizes that holds both a wide and a tall picture would
also hold their product, a picture nobody sends, and reserve memory for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from export.specs import ModelSpec
from export.stages import contracts
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, VISION, StageContract
from runtime_py.errors import UnsupportedModelError
from targets.base import Limits

Range = tuple[int, int, int]
"""Least, typical and greatest size of an axis."""

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


def _axes(spec: ModelSpec, stage: str, limits: Limits, packed: bool) -> dict[str, dict[str, Range]]:
    batch = (limits.batch, limits.batch, limits.batch)
    chunk, context = limits.prefill_chunk, limits.context
    if stage == EMBED:
        step = {"batch": batch, "tokens": (1, 1, 1)}
        return {"decode": step, "prefill": {"batch": batch, "tokens": (1, min(256, context), context)}}
    if stage == DECODER:
        past = {"past": (context, context, context)}
        decode = {"tokens": (1, 1, 1), "outputs": (1, 1, 1), "total": (1, max(1, context // 4), context)}
        prefill = {"tokens": (1, chunk, chunk), "outputs": (1, 1, chunk), "total": (1, chunk, context)}
        decode |= {"language_rows": (1, 1, 1)} | dict.fromkeys(("vision_rows", "image_rows"), (0, 0, 0))
        prefill |= dict.fromkeys(("language_rows", "vision_rows", "image_rows"), (0, max(1, chunk // 2), chunk))
        both = {"decode": {"batch": batch, **past, **decode}, "prefill": {"batch": batch, **past, **prefill}}
        return both if packed else {"any": both["prefill"]}
    if stage in (VISION, CONNECTOR):
        return {name: {"images": (1, 1, max(1, limits.batch)), **axes} for name, axes in _grids(spec, stage).items()}
    raise ValueError(f"no stage named {stage!r}")


def _grids(spec: ModelSpec, stage: str) -> dict[str, dict[str, Range]]:
    """Ranges of the picture's axes by orientation; one empty entry when the size is fixed."""
    grid, patch = getattr(spec.vision, "grid", None), getattr(spec.vision, "patch_size", None)
    if grid is not None:
        return {"fixed": {}}
    if "image_size" in spec.runtime and "scale_resolution" not in spec.runtime:
        return _whole_pictures(spec, stage)
    if patch is None or "scale_resolution" not in spec.runtime:
        raise UnsupportedModelError(
            f"{spec.family}: TensorRT profiles of its vision encoder are not worked out",
            "a fixed grid, slices of a known resolution, or whole pictures up to a known number of patches",
            "export this model for another target",
        )
    side = spec.runtime["scale_resolution"] // patch
    middle, longest = round(side * math.sqrt(2)), side * ELONGATION
    if stage == CONNECTOR:
        return {"any": {"vision_tokens": (1, side * side, max(middle * middle, side * longest))}}

    def box(rows: Range, columns: Range) -> dict[str, Range]:
        pixels = {"height": rows, "width": columns}
        sizes = {name: (low * patch, typical * patch, high * patch) for name, (low, typical, high) in pixels.items()}
        return {"grid_rows": rows, "grid_columns": columns, **sizes}

    square, short, long = (1, side, middle), (1, side // 2, side), (1, 2 * side, longest)
    return {"square": box(square, square), "wide": box(short, long), "tall": box(long, short)}


def _whole_pictures(spec: ModelSpec, stage: str) -> dict[str, dict[str, Range]]:
    """Pictures of any grid in one piece, up to the patches that the processor lets through."""
    settings = spec.runtime
    patch = settings["patch_size"]
    side = settings["image_size"] // patch
    longest = settings["longest_edge"] // patch + 1 if "longest_edge" in settings else ELONGATION * side
    most = min(longest * longest, ELONGATION * side * side)
    cells = (1, max(1, side * side // 4), most)
    grid = {"vision_tokens": (1, side * side, most), "cells": cells}
    edge = (patch, side * patch, longest * patch)
    return {"any": grid if stage == CONNECTOR else {**grid, "height": edge, "width": edge}}


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
