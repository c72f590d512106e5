"""What an ONNX Runtime session can be fed, and whether that is what the package's contract says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.backends.base import Arrays
from runtime_py.backends.logit_rows import COUNT, POSITIONS
from runtime_py.contracts import StageContract
from runtime_py.errors import PackageError

PAST, PRESENT = "past_key_values.", "present."

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}


def taken(session: Any) -> dict[str, Any]:
    """What a session can be fed, by name."""
    return {value.name: value for value in (*session.get_inputs(), *session.get_overridable_initializers())}


def refuse_other_inputs(path: Path, session: Any, contract: StageContract) -> None:
    """Hold a graph against its contract before it is run; what is fed later is held against it value by value.

    Raises:
        PackageError: the graph needs an input that the contract does not state or a type that is not fed, or does not give
            what the contract promises.
    """
    known = {*contract.input_names(), POSITIONS, COUNT}
    wrong = [f"needs {value.name!r}" for value in session.get_inputs() if value.name not in known]
    wrong += [f"takes {value.name!r} as {value.type}" for value in taken(session).values() if value.type not in DTYPES]
    given = {value.name for value in session.get_outputs()}
    wrong += [f"gives no {tensor.name!r}" for tensor in contract.outputs if tensor.name not in given]
    if wrong:
        raise PackageError(
            f"{path} is not the graph of its contract: it {', '.join(wrong)}",
            f"the inputs and outputs of contracts.{contract.stage} in the manifest",
            "do not use this package; its manifest or its graph was altered",
        )


def checked(contract: StageContract, stage: str, dtypes: Mapping[str, Any], inputs: Arrays) -> dict[str, np.ndarray]:
    """Inputs of a call without its caches, held against the contract, in the dtypes that the graph takes.

    Args:
        dtypes: of what the session can be fed, by name.

    Raises:
        PackageError: one is missing, does not fit the contract, or is not taken by the graph.
    """
    feeds = {}
    for tensor in contract.inputs:
        if tensor.name.startswith(PAST) or (tensor.name not in inputs and not tensor.required):
            continue
        if tensor.name not in inputs or tensor.name not in dtypes:
            wrong = "missing" if tensor.name not in inputs else "not taken by the graph"
            raise PackageError(
                f"stage {stage}: the input '{tensor.name}' is {wrong}",
                f"{tensor.dtype} {list(tensor.shape)}",
                "check that the package's processor belongs to its graphs, and that no tool rewrote them",
            )
        array: np.ndarray = np.ascontiguousarray(inputs[tensor.name], dtype=dtypes[tensor.name])
        tensor.check(array.astype(tensor.dtype, copy=False), stage)
        feeds[tensor.name] = array
    return feeds
