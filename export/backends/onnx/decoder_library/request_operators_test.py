"""Casts to float16 of what a request gives: they round, as those of the graph do, and nothing takes them for none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from export.backends.onnx.decoder_library.library import compile_decoder
from export.backends.onnx.decoder_library.written import FILES
from runtime_py.backends.compiled_stage import aligned
from runtime_py.backends.decoder_library import STEP, chosen_variant
from runtime_py.backends.tvm_runtime import tvm_ffi

HIDDEN = 48


def gate() -> onnx.ModelProto:
    """inputs_embeds times a softmax of the gate input, with the roundings of Awaker2.5-VL's gates."""
    nodes = [
        helper.make_node("Cast", ["gate_input"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["single"], to=TensorProto.FLOAT),
        helper.make_node("Softmax", ["single"], ["share"], axis=-1),
        helper.make_node("Cast", ["share"], ["share_half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["share_half"], ["share_single"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["inputs_embeds", "share_single"], ["logits"]),
    ]
    inputs = [
        helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, ["sequences", "tokens", HIDDEN]),
        helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["sequences", "tokens"]),
        helper.make_tensor_value_info("gate_input", TensorProto.FLOAT, [1, HIDDEN]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["sequences", "tokens", HIDDEN])]
    graph = helper.make_graph(nodes, "gate", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def test_casts_round(tmp_path: Path) -> None:
    graph, library = tmp_path / "gate.onnx", tmp_path / "gate.so"
    onnx.save(gate(), str(graph))
    told = compile_decoder(graph, chosen_variant(dict.fromkeys(FILES.variants(), "")), library)
    assert told["shared"] == ["gate_input"]
    machine = tvm_ffi().load_module(str(library))["vm_load_executable"]()
    machine["vm_initialization"](1, 0, 2)
    session = onnxruntime.InferenceSession(graph)

    def array(values: object, kind: type) -> Any:
        return tvm_ffi().from_dlpack(aligned(np.array(values, kind), np.dtype(kind)))

    for seed in range(20):
        drawn = np.random.default_rng(seed).standard_normal((2, HIDDEN)).astype(np.float32)
        embeds, given = np.ones((1, 1, HIDDEN), np.float32), drawn[:1] * 4
        shared = [array(embeds, np.float32), array([[0]], np.int32), array([0], np.int32), array(given, np.float32)]
        made = np.from_dlpack(machine[STEP](*shared, tvm_ffi().Array([]), tvm_ffi().Array([])))
        feeds = {"inputs_embeds": embeds, "position_ids": np.zeros((1, 1), np.int64), "gate_input": given}
        expected = session.run(None, feeds)[0][0]
        assert np.array_equal(made, made.astype(np.float16).astype(np.float32))
        # both take the power of e in float32; one of fifty numbers may lie on a boundary of float16
        assert np.abs(made - expected).max() <= 2**-11 * expected.max() and (made == expected).mean() > 0.9
        whole = np.exp(given.astype(np.float64)) / np.exp(given.astype(np.float64)).sum()
        assert (made != whole.astype(np.float16)).any()
