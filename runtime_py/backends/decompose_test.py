"""Decomposed operators against the operators themselves, with ONNX Runtime's processor kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from runtime_py.backends.decompose import decompose_attention, round_in_float32, split_fused_products, widen
from runtime_py.errors import PackageError

MICROSOFT = "com.microsoft"
OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]


def run(model: ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    made: list[np.ndarray] = session.run(None, feeds)
    return made


def model_of(nodes: list[Any], feeds: dict[str, np.ndarray], outputs: dict[str, int], stored: Any = ()) -> ModelProto:
    kind = helper.np_dtype_to_tensor_dtype
    inputs = [helper.make_tensor_value_info(name, kind(array.dtype), array.shape) for name, array in feeds.items()]
    given_out = [helper.make_tensor_value_info(name, element, None) for name, element in outputs.items()]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, given_out, stored), opset_imports=OPSETS, ir_version=10)


@given(rows=st.integers(1, 9), keys=st.integers(1, 9), heads=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_full_attention(rows: int, keys: int, heads: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    shapes = {"q": (1, rows, heads * 8), "k": (1, keys, heads * 8), "v": (1, keys, heads * 8)}
    feeds = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    node = helper.make_node("MultiHeadAttention", [*feeds], ["out"], domain=MICROSOFT, num_heads=heads, scale=0.3)
    model = model_of([node], feeds, {"out": TensorProto.FLOAT})
    expected = run(model, feeds)[0]
    assert decompose_attention(model) == 1
    np.testing.assert_allclose(run(model, feeds)[0], expected, atol=1e-6)


@given(filled=st.integers(0, 6), rows=st.integers(1, 5), spare=st.integers(0, 3), group=st.integers(1, 3))
@settings(max_examples=10, deadline=None)
@pytest.mark.parametrize("cache", [np.float32, np.float16])
def test_cached_attention_and_its_cache(cache: type, filled: int, rows: int, spare: int, group: int) -> None:
    draw = np.random.default_rng(filled * 100 + rows * 10 + spare)
    kv_heads, width, kind = 2, 8, helper.np_dtype_to_tensor_dtype(np.dtype(cache))
    capacity, total = filled + rows + spare, filled + rows
    feeds = {"q": draw.standard_normal((1, rows, kv_heads * group * width)).astype(np.float32)}
    feeds |= {name: draw.standard_normal((1, rows, kv_heads * width)).astype(np.float32) for name in ("k", "v")}
    feeds |= {name: draw.standard_normal((1, kv_heads, capacity, width)).astype(cache) for name in ("pk", "pv")}
    feeds |= {"last": np.array([total - 1], np.int32), "total": np.array([total], np.int32)}
    casts = [helper.make_node("Cast", [name], [f"{name}c"], to=kind) for name in "qkv"]
    attributes: dict[str, Any] = {"num_heads": kv_heads * group, "kv_num_heads": kv_heads, "scale": 0.2, "do_rotary": 0}
    inputs = ["qc", "kc", "vc", "pk", "pv", "last", "total"]
    node = helper.make_node("GroupQueryAttention", inputs, ["o", "nk", "nv"], domain=MICROSOFT, **attributes)
    back = helper.make_node("Cast", ["o"], ["out"], to=TensorProto.FLOAT)
    model = model_of([*casts, node, back], feeds, {"out": TensorProto.FLOAT, "nk": kind, "nv": kind})
    expected = run(model, feeds)
    widen(model)
    assert decompose_attention(model) == 1
    wide = {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in feeds.items()}
    for got, want, filled_rows in zip(run(model, wide), expected, (rows, total, total), strict=True):
        axis = 1 if got.ndim == 3 else 2
        taken = np.arange(filled_rows)
        np.testing.assert_allclose(
            got.take(taken, axis), want.astype(np.float32).take(taken, axis), atol=1e-6 if cache is np.float32 else 4e-3
        )


def test_what_no_graph_of_ours_has_is_refused() -> None:
    feeds = {name: np.zeros((1, 2, 8), np.float32) for name in ("q", "k", "v")} | {"bias": np.zeros(24, np.float32)}
    node = helper.make_node("MultiHeadAttention", [*feeds], ["out"], domain=MICROSOFT, num_heads=2, scale=0.3)
    with pytest.raises(PackageError, match="takes bias"):
        decompose_attention(model_of([node], feeds, {"out": TensorProto.FLOAT}))
    unscaled = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["out"], domain=MICROSOFT, num_heads=2)
    with pytest.raises(PackageError, match="says no scale"):
        decompose_attention(model_of([unscaled], feeds, {"out": TensorProto.FLOAT}))


def test_a_fused_product_is_a_product() -> None:
    draw = np.random.default_rng(0)
    feeds, weight = (
        {"x": draw.standard_normal((1, 3, 8)).astype(np.float32)},
        draw.standard_normal((5, 8)).astype(np.float32),
    )
    node = helper.make_node("FusedMatMul", ["x", "w"], ["out"], domain=MICROSOFT, transB=1)
    model = model_of([node], feeds, {"out": TensorProto.FLOAT}, [numpy_helper.from_array(weight, "w")])
    expected = run(model, feeds)[0]
    assert split_fused_products(model) == 1
    assert not any(node.op_type == "FusedMatMul" for node in model.graph.node)
    np.testing.assert_allclose(run(model, feeds)[0], expected, atol=1e-6)


def test_a_rounding_that_belongs_to_the_model_stays_one() -> None:
    feeds = {"x": np.random.default_rng(0).standard_normal(4096).astype(np.float32) * 100}
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["out"], to=TensorProto.FLOAT),
    ]
    model = model_of(nodes, feeds, {"out": TensorProto.FLOAT})
    widen(model)
    assert round_in_float32(model) == 1
    assert not any(attribute.i == TensorProto.FLOAT16 for node in model.graph.node for attribute in node.attribute)
    np.testing.assert_array_equal(run(model, feeds)[0], feeds["x"].astype(np.float16).astype(np.float32))


def test_tables_in_float16_are_widened() -> None:
    table, feeds = np.arange(12, dtype=np.float16).reshape(3, 4), {"ids": np.array([2, 0], np.int64)}
    nodes = [helper.make_node("Gather", ["t", "ids"], ["h"]), helper.make_node("Cast", ["h"], ["out"], to=TensorProto.FLOAT)]
    model = model_of(nodes, feeds, {"out": TensorProto.FLOAT}, [numpy_helper.from_array(table, "t")])
    widen(model)
    assert model.graph.node[0].op_type == "Cast"
    np.testing.assert_array_equal(run(model, feeds)[0], table[[2, 0]].astype(np.float32))


def test_a_table_in_float16_that_is_read_twice_is_widened_for_each() -> None:
    table = np.arange(12, dtype=np.float16).reshape(3, 4)
    feeds = {"first": np.array([2, 0], np.int64), "second": np.array([1], np.int64)}
    nodes = []
    for name in feeds:
        nodes.append(helper.make_node("Gather", ["t", name], [f"{name}_rows"]))
        nodes.append(helper.make_node("Cast", [f"{name}_rows"], [f"{name}_out"], to=TensorProto.FLOAT))
    outputs: dict[str, int] = {f"{name}_out": TensorProto.FLOAT for name in feeds}
    model = model_of(nodes, feeds, outputs, [numpy_helper.from_array(table, "t")])
    widen(model)
    for rows, ids in zip(run(model, feeds), feeds.values(), strict=True):
        np.testing.assert_array_equal(rows, table[ids].astype(np.float32))
