"""Sizes that a checkpoint's tensors say better than its config."""

from __future__ import annotations

from export.source.tensor_source import TensorSource
from runtime_py.errors import CheckpointError


def stored_size(source: TensorSource, name: str, axis: int) -> int | None:
    """The length of an axis of a stored tensor; None where the tensor is not stored.

    Raises:
        CheckpointError: the tensor has no such axis, or one without any rows.
    """
    info = source.infos.get(name)
    if info is None:
        return None
    if len(info.shape) <= axis or info.shape[axis] < 1:
        raise CheckpointError(
            f"tensor {name} has the shape {list(info.shape)}",
            f"at least one row along axis {axis}",
            "check that every file of the checkpoint was downloaded whole",
        )
    return info.shape[axis]
