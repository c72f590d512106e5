"""A written tower as a shared library, for one kind of processor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.backends.onnx.vision_library.rotary_tower import RotaryTower
from export.backends.onnx.vision_library.tower import Tower
from export.compilation.processor_library import write_processor_library
from export.compilation.size_order import sizes_in_order
from export.graphs.writer import lying
from export.processor.targets import TARGETS
from export.specs import AnyVisionSpec, PositionKind, RotaryVisionSpec, VisionSpec
from runtime_py.backends.vision_library import ROTARY

POSITIONS, CLASS_POSITION = "positions", "class_position"

MOST_TOKENS = 16384
"""Of a picture of any size: a grid of 128 x 128 patches."""

MOST_PATCHES = 65536
"""The same of a tower with rotary positions: Qwen2-VL's pictures have up to 12,845,056 pixels, 196 a patch."""


@sizes_in_order()
def compile_vision(spec: AnyVisionSpec, graph: Path, chosen: Mapping[str, str], place: str, out: Path) -> dict[str, Any]:
    """Write ``out``, the library of a tower.

    Args:
        graph: the tower's, as it was written, whose data file need not be there.
        chosen: as of `export.backends.onnx.vision_library.panel_tower.PanelTower`.
        place: a key of `export.processor.targets.TARGETS`.

    Returns:
        what the library is called with: how positions are made, and of their table and that of a class token, where there
        are tables, and of every parameter, in order, its name, dtype, shape, file beside the graph and offset.

    Raises:
        MachineError: there is no linker.
    """
    tower = RotaryTower(spec, chosen) if isinstance(spec, RotaryVisionSpec) else Tower(spec, chosen)
    write_processor_library(tower.module(), TARGETS[place], {"tokens": most_tokens(spec)}, out)
    tables = _tables(spec)
    places = lying(graph, [*tables, *(parameter.name for parameter in tower.parameters)])

    def row(name: str, dtype: str, shape: tuple[int, ...]) -> list[Any]:
        return [name, dtype, list(shape), places[name].file, places[name].offset]

    parameters = [row(each.name, each.dtype, each.shape) for each in tower.parameters]
    if isinstance(spec, RotaryVisionSpec):
        return {"kind": ROTARY, "most": most_tokens(spec), "parameters": parameters}
    return {
        "kind": str(spec.positions),
        "most": most_tokens(spec),
        "side": spec.native_grid,
        "table": row(POSITIONS, "float32", (tables[POSITIONS], spec.width)),
        "first": [row(name, "float32", (1, spec.width)) for name in tables if name == CLASS_POSITION],
        "parameters": parameters,
    }


def _tables(spec: AnyVisionSpec) -> dict[str, int]:
    """Of positions that are added: rows by name."""
    if isinstance(spec, RotaryVisionSpec):
        return {}
    return {POSITIONS: table_rows(spec), **({CLASS_POSITION: 1} if spec.class_token else {})}


def table_rows(spec: VisionSpec) -> int:
    """Positions of the table as the graph's file has it."""
    rows, columns = (spec.positions is PositionKind.FIXED and spec.grid) or (spec.native_grid, spec.native_grid)
    return rows * columns


def most_tokens(spec: AnyVisionSpec) -> int:
    """Of a picture: what memory is planned for."""
    if isinstance(spec, RotaryVisionSpec):
        return MOST_PATCHES
    return table_rows(spec) + int(spec.class_token) if spec.positions is PositionKind.FIXED else MOST_TOKENS
