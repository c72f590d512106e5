"""A written tower as a shared library, for one kind of processor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.backends.onnx.decoder_library.values import Parameter
from export.backends.onnx.vision_library.written import TOWERS
from export.compilation.processor_library import write_processor_library
from export.compilation.size_order import sizes_in_order
from export.graphs.writer import lying
from export.modules.kind import named_class
from export.modules.vision.base import TowerSpec
from export.processor.targets import TARGETS


@sizes_in_order()
def compile_vision(spec: TowerSpec, graph: Path, chosen: Mapping[str, str], place: str, out: Path) -> dict[str, Any]:
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
    tower = named_class(spec, TOWERS[type(spec)])(spec, chosen)
    write_processor_library(tower.module(), TARGETS[place], {"tokens": tower.most}, out)
    tables = tower.tables()
    places = lying(graph, [each.name for each in (*tables, *tower.parameters)])

    def row(each: Parameter) -> list[Any]:
        return [each.name, each.dtype, list(each.shape), places[each.name].file, places[each.name].offset]

    told = {"kind": tower.kind, "most": tower.most, **tower.told([row(table) for table in tables])}
    return {**told, "parameters": [row(parameter) for parameter in tower.parameters]}
