"""Sizes, dtypes and shapes of values of an ONNX graph, for those who take it apart."""

from __future__ import annotations

from typing import Any

import numpy as np


def stored_bytes(value: Any) -> int:
    """Bytes of an onnx.TensorProto, wherever its data lie."""
    import onnx

    width = onnx.helper.tensor_dtype_to_np_dtype(value.data_type).itemsize
    return width * int(np.prod(value.dims, dtype=np.int64))


def dtype_of(value: Any) -> np.dtype:
    """NumPy's dtype of an onnx.ValueInfoProto."""
    import onnx

    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def axes_of(value: Any) -> list[int | str | None] | None:
    """The axes of an onnx.ValueInfoProto: a number, a name or nothing known; None where it has no shape."""
    if value is None or not value.type.tensor_type.HasField("shape"):
        return None
    return [axis.dim_param or axis.dim_value or None for axis in value.type.tensor_type.shape.dim]


def element_type(value: Any) -> int:
    """ONNX's element type of an OrtValue."""
    return int(value.element_type())
