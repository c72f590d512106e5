"""Small graphs with products of adapters: what they are added to, what is made once, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.backends.onnx.decoder_library.kernels import LibraryKernels
from export.backends.onnx.decoder_library.library import ENTRIES, compile_decoder
from export.backends.onnx.decoder_library.translation import Translation
from export.backends.onnx.decoder_library.written import FILES
from runtime_py.backends.compiled_stage import aligned
from runtime_py.backends.decoder_library import STEP, chosen_variant
from runtime_py.backends.tvm_runtime import tvm_ffi
from runtime_py.errors import UnsupportedModelError

WIDTH, BLOCK = 64, 32
INDICES = ("image_index", "delta_index")
SUMS = [
    ["product delta logits"],
    ["delta product total", "total product logits"],
    ["alias delta total", "total product logits"],
    ["product delta total", "total alias logits"],
]
"""Of a product and a delta, after which the product may be read once more, by its own name or by another."""


def weights() -> dict[str, np.ndarray]:
    """Codes and scales of "product", of 4 bits, and of "delta", of 8."""
    drawn, made = np.random.default_rng(0), {}
    for name, bits in (("product", 4), ("delta", 8)):
        made[f"{name}_codes"] = drawn.integers(0, 256, (WIDTH, WIDTH // BLOCK, BLOCK * bits // 8), np.uint8)
        made[f"{name}_scales"] = drawn.uniform(0.001, 0.002, (WIDTH, WIDTH // BLOCK)).astype(np.float16)
    return made


def multiplied(x: str, name: str, bits: int, level: int) -> list[NodeProto]:
    sizes: dict[str, Any] = {"N": WIDTH, "K": WIDTH, "block_size": BLOCK, "bits": bits, "accuracy_level": level}
    given = [x, f"{name}_codes", f"{name}_single"]
    return [
        helper.make_node("Cast", [f"{name}_scales"], [f"{name}_single"], to=TensorProto.FLOAT),
        helper.make_node("MatMulNBits", given, [name], domain="com.microsoft", **sizes),
    ]


def added(names: str) -> NodeProto:
    """Two names, and that of their sum."""
    *given, made = names.split()
    return helper.make_node("Add", given, [made])


def taken(source: str, index: str, name: str) -> list[NodeProto]:
    """Rows of tokens, as graphs of WeMM take them."""
    return [
        helper.make_node("Transpose", [source], [f"{name}_turned"], perm=[1, 0, 2]),
        helper.make_node("Unsqueeze", [index, "last"], [f"{name}_index"]),
        helper.make_node("GatherND", [f"{name}_turned", f"{name}_index"], [f"{name}_taken"]),
        helper.make_node("Transpose", [f"{name}_taken"], [name], perm=[1, 0, 2]),
    ]


def written(folder: Path, nodes: list[NodeProto], indices: tuple[str, ...] = ()) -> Path:
    """A graph from "inputs_embeds" to "logits", in which "product" is one of rounded inputs."""
    shape: list[str | int | None] = ["sequences", "tokens", WIDTH]
    inputs = [
        helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["sequences", "tokens"]),
        *(helper.make_tensor_value_info(name, TensorProto.INT64, [name]) for name in indices),
    ]
    held = [numpy_helper.from_array(array, name) for name, array in weights().items()]
    for tensor in held:
        onnx.external_data_helper.set_external_data(tensor, "graph.onnx_data")
    held.append(numpy_helper.from_array(np.array([-1]), "last"))
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)]
    graph = helper.make_graph([*multiplied("inputs_embeds", "product", 4, 4), *nodes], "small", inputs, outputs, held)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(folder / "graph.onnx"))
    return folder / "graph.onnx"


def step(graph: Path, x: np.ndarray) -> np.ndarray:
    """Of the graph's library: logits (rows, WIDTH) of a token of each of several sequences."""
    library = graph.with_name("library.so")
    told = compile_decoder(graph, chosen_variant(dict.fromkeys(FILES.variants(), "")), library)
    machine = tvm_ffi().load_module(str(library))["vm_load_executable"]()
    machine["vm_initialization"](1, 0, 2)

    def array(values: np.ndarray) -> Any:
        return tvm_ffi().from_dlpack(aligned(values, values.dtype))

    held, rows = weights(), len(x)
    parameters = tvm_ffi().Array([array(held[name]) for name, *_ in told["parameters"]])
    positions, lengths = np.zeros((rows, 1), np.int32), np.zeros(rows, np.int32)
    return np.from_dlpack(machine[STEP](*map(array, (x[:, None], positions, lengths)), tvm_ffi().Array([]), parameters))


@pytest.mark.parametrize("sums", SUMS, ids=", ".join)
def test_a_product_that_is_still_read_is_not_written_over(tmp_path: Path, sums: list[str]) -> None:
    alias = helper.make_node("Identity", ["product"], ["alias"])
    graph = written(tmp_path, [*multiplied("inputs_embeds", "delta", 8, 0), alias, *map(added, sums)])
    model = onnx.load(str(graph), load_external_data=False)
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights().items())
    x = np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32)
    feeds = {"inputs_embeds": x[:, None], "position_ids": np.zeros((3, 1), np.int64)}
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0][:, 0]
    assert np.abs(step(graph, x) - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_product_that_is_read_twice_is_made_once(tmp_path: Path) -> None:
    twice = helper.make_node("Mul", ["delta", "delta"], ["logits"])
    graph = onnx.load(
        str(written(tmp_path, [*multiplied("inputs_embeds", "delta", 8, 0), twice])), load_external_data=False
    ).graph
    module = Translation(graph, LibraryKernels(FILES.variants()[0])).module(ENTRIES[:1])
    assert str(module[STEP]).count("float_product,") == 1


def test_rows_of_deltas_are_added_to_a_product_that_nothing_else_reads_or_refused(tmp_path: Path) -> None:
    deltas = [
        *taken("inputs_embeds", "image_index", "rows"),
        *multiplied("rows", "delta", 8, 0),
        helper.make_node("Shape", ["inputs_embeds"], ["sizes"]),
        helper.make_node("ConstantOfShape", ["sizes"], ["zeros"]),
        helper.make_node("Concat", ["delta", "zeros"], ["behind"], axis=1),
        *taken("behind", "delta_index", "spread"),
    ]
    once = [added("product spread logits")]
    again = [added("product spread total"), added("total product logits")]
    place = FILES.variants()[0]
    compile_decoder(written(tmp_path, [*deltas, *once], INDICES), place, tmp_path / "once.so")
    with pytest.raises(UnsupportedModelError, match="Add 'total' adds rows of deltas to something else"):
        compile_decoder(written(tmp_path, [*deltas, *again], INDICES), place, tmp_path / "again.so")
