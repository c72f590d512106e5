"""Graphs that load and fail while they run, on ONNX Runtime itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from runtime_py.backends.ort import OrtBackend
from runtime_py.backends.ort_decoder import CacheBuffers, DecoderCalls
from runtime_py.backends.ort_run_errors import SHOWN, run_errors
from runtime_py.contracts import VISION, StageContract, TensorContract
from runtime_py.errors import EdgeproofError, ExitCode, MachineError, PackageError

NAME = "Reshape\x1b[31m of a stranger " + "x" * 400


def graph(path: Path, input_name: str, output_name: str, nodes: list[Any], constants: list[Any]) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "m"]) for name in (input_name, output_name)]
    made = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), str(path))


def unfitting(input_name: str, output_name: str) -> tuple[list[Any], list[Any]]:
    """Eight columns a row, which an input of another size cannot be cut into."""
    constant = helper.make_tensor("to", TensorProto.INT64, [2], [-1, 8])
    return [helper.make_node("Reshape", [input_name, "to"], [output_name], name=NAME)], [constant]


def endless(input_name: str, output_name: str) -> tuple[list[Any], list[Any]]:
    """A petabyte, which no machine addresses."""
    constant = helper.make_tensor("to", TensorProto.INT64, [2], [1 << 24, 1 << 24])
    return [helper.make_node("Expand", [input_name, "to"], [output_name])], [constant]


def vision(folder: Path, nodes: list[Any], constants: list[Any]) -> OrtBackend:
    graph(folder / "v.onnx", "pixel_values", "vision_features", nodes, constants)
    one, other = (TensorContract(name, "float32", ("n", "m")) for name in ("pixel_values", "vision_features"))
    manifest = {
        "backends": {"onnx": {"stages": {VISION: {"file": "v.onnx"}}}},
        "files": [{"path": "v.onnx", "bytes": 0, "sha256": "0" * 64}],
        "contracts": {VISION: StageContract(VISION, (one,), (other,)).to_json()},
    }
    return OrtBackend(folder, manifest, threads=1)


def test_a_graph_that_cannot_compute_is_the_packages_fault(tmp_path: Path) -> None:
    backend = vision(tmp_path, *unfitting("pixel_values", "vision_features"))
    assert backend.run(VISION, {"pixel_values": np.ones((2, 4), np.float32)})["vision_features"].shape == (1, 8)
    with pytest.raises(PackageError, match="the graph of vision_encoder failed while it ran") as told:
        backend.run(VISION, {"pixel_values": np.ones((1, 3), np.float32)})
    error = told.value
    assert "Reshape" in error.what and error.exit_code == ExitCode.ENVIRONMENT
    assert "\x1b" not in error.what and "\n" not in error.what and len(error.what) < SHOWN + 100
    assert error.__cause__ is not None
    assert backend.run(VISION, {"pixel_values": np.ones((1, 8), np.float32)})["vision_features"].shape == (1, 8)


def test_memory_that_gives_out_is_the_machines(tmp_path: Path) -> None:
    backend = vision(tmp_path, *endless("pixel_values", "vision_features"))
    with pytest.raises(EdgeproofError, match="the memory gave out while vision_encoder ran") as told:
        backend.run(VISION, {"pixel_values": np.ones((1, 1), np.float32)})
    assert isinstance(told.value, MachineError) and "smaller pictures" in told.value.next_step


def test_calls_of_the_decoder_are_told_the_same(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    graph(tmp_path / "d.onnx", "inputs_embeds", "logits", *unfitting("inputs_embeds", "logits"))
    session = ort.InferenceSession(str(tmp_path / "d.onnx"))
    calls = DecoderCalls(session, ort.OrtValue.ortvalue_from_numpy, vocabulary=8)
    with pytest.raises(PackageError, match="the graph of decoder failed while it ran"):
        calls({"inputs_embeds": np.ones((1, 3), np.float32)}, (1, 1), CacheBuffers())


def test_a_device_that_fails_is_the_machines() -> None:
    with pytest.raises(MachineError, match="the device failed while decoder ran"), run_errors("decoder"):
        raise RuntimeError("CUDA failure 719: unspecified launch failure ; GPU=0")


def test_what_is_not_onnx_runtimes_passes() -> None:
    for other in (ValueError("no"), MemoryError(), MachineError("a", "b", "c"), KeyError("k")):
        with pytest.raises(type(other)) as told, run_errors("decoder"):
            raise other
        assert told.value is other
