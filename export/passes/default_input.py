"""Gives an optional graph input a value of its own, so that a caller may leave it out."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


def default_input(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    """Store ``value`` as the initializer behind the input ``name`` of ``model``; the input itself stays.

    Raises:
        KeyError: the graph has no such input.
    """
    if all(entry.name != name for entry in model.graph.input):
        raise KeyError(name)
    model.graph.initializer.append(numpy_helper.from_array(value, name))
