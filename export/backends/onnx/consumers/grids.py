"""The picture graph of Qwen2-VL's kind, from flat patches and their grid: the rotary angles are worked out inside.

Patches come in blocks of merge x merge, as the connector joins them; the angles of a patch are its row's, then its column's,
at each frequency. Source: transformers 4.45, models/qwen2_vl/modeling_qwen2_vl.py (rot_pos_emb).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.backends.onnx.consumers.held import ANGLES
from export.modules.vision.specs import RotaryVisionSpec
from runtime_py.preprocess.patches import rotary_angles

PIXELS, GRID = "pixel_values", "image_grid_thw"
PLACE = "/grid"


def grid_graph(joined: onnx.ModelProto, vision: RotaryVisionSpec) -> onnx.ModelProto:
    """The joined graph with ``pixel_values`` (patches, values) and ``image_grid_thw`` int64 (1, 3) of one picture as inputs.

    The grid counts temporal slices, rows and columns of patches.
    """
    model = onnx.ModelProto.FromString(joined.SerializeToString())
    graph = model.graph
    inside = "patches_by_slice"
    for node in graph.node:
        node.input[:] = [inside if name == PIXELS else name for name in node.input]
    kept = [value for value in graph.input if value.name not in (PIXELS, ANGLES)]
    described = {value.name: value.type for value in graph.input}
    graph.value_info.add(name=inside, type=described[PIXELS])
    graph.value_info.add(name=ANGLES, type=described[ANGLES])
    del graph.input[:]
    graph.input.extend(
        [
            helper.make_tensor_value_info(PIXELS, TensorProto.FLOAT, ["patches", vision.patch_values]),
            helper.make_tensor_value_info(GRID, TensorProto.INT64, [1, 3]),
            *kept,
        ]
    )
    nodes = _Nodes(graph)
    _angles(nodes, vision)
    slices = nodes.make("Unsqueeze", [nodes.axis(0), nodes.constant("grid_front", [0])])
    values = nodes.constant("patch_values", [vision.patch_values])
    shape = nodes.make("Concat", [slices, nodes.constant("grid_rest", [-1]), values], axis=0)
    nodes.make("Reshape", [PIXELS, shape], name=inside)
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes.made, *rest])
    return model


def _angles(nodes: _Nodes, vision: RotaryVisionSpec) -> None:
    """``rotary_angles`` (patches, head_dim / 2) from the grid."""
    merge = vision.merge
    # the second row of a grid one patch wide has the frequencies themselves as its row angles
    frequencies = rotary_angles(merge, merge, merge, vision.head_dim)[merge, : vision.head_dim // 4]
    row = np.ascontiguousarray(frequencies[None])
    nodes.graph.initializer.append(numpy_helper.from_array(row, "grid_frequencies"))
    side = nodes.constant("grid_merge", merge)
    blocks = [nodes.make("Div", [nodes.axis(axis), side]) for axis in (1, 2)]
    flat = [nodes.make("Unsqueeze", [count, nodes.constant("grid_front", [0])]) for count in blocks]
    inner = nodes.constant("grid_block", [merge])
    shape = nodes.make("Concat", [*flat, inner, inner], axis=0)
    parts = []
    for axis, laid_out in ((1, [-1, 1, merge, 1]), (2, [1, -1, 1, merge])):
        counted = nodes.make("Range", [nodes.constant("grid_zero", 0), nodes.axis(axis), nodes.constant("grid_one", 1)])
        placed = nodes.make("Reshape", [counted, nodes.constant(f"grid_shape_{axis}", laid_out)])
        column = nodes.make("Reshape", [nodes.make("Expand", [placed, shape]), nodes.constant("grid_column", [-1, 1])])
        number = nodes.make("Cast", [column], to=TensorProto.FLOAT)
        parts.append(nodes.make("Mul", [number, "grid_frequencies"]))
    nodes.make("Concat", parts, name=ANGLES, axis=1)


class _Nodes:
    """Nodes to put before a graph's own, and the constants they read."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.made: list[onnx.NodeProto] = []
        self._constants: set[str] = set()

    def constant(self, name: str, value: int | list[int]) -> str:
        if name not in self._constants:
            self._constants.add(name)
            self.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
        return name

    def make(self, operator: str, inputs: list[str], name: str = "", **attributes: int) -> str:
        """One node; the name of what it makes."""
        output = name or f"grid_{len(self.made)}"
        label = f"{PLACE}/{operator}_{len(self.made)}"
        self.made.append(helper.make_node(operator, inputs, [output], label, None, None, None, **attributes))
        return output

    def axis(self, index: int) -> str:
        """A count of the grid, int64 ()."""
        flat = self.make("Reshape", [GRID, self.constant("grid_flat", [-1])])
        return self.make("Gather", [flat, self.constant(f"grid_axis_{index}", index)])
