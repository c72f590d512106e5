"""Norms and the gate of a decode step: the numbers of ONNX Runtime's operators, and those of their formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from export.processor.conftest import X86, drawn, of_processor
from export.processor.row_kernels import SHARED, gate, norm, skip_norm

pytestmark = pytest.mark.parametrize("place", X86)
EPS = 1e-5
WIDTHS = (2304, 576, 100, 7)
"""Whole steps, vectors that are no whole step, numbers that are no whole vector, and less than one."""


def rooted(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(1, keepdims=True) + EPS) * weight


def operator(name: str, domain: str, inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
    given = [helper.make_tensor_value_info(key, TensorProto.FLOAT, array.shape) for key, array in inputs.items()]
    made = [helper.make_tensor_value_info(key, TensorProto.FLOAT, None) for key in outputs if key]
    attributes: dict[str, Any] = {"epsilon": EPS} | ({} if domain else {"axis": -1})
    node = helper.make_node(name, list(inputs), outputs, domain=domain, **attributes)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "one", given, made), opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_a_step_is_added_and_the_sum_has_the_root_mean_square_of_its_weight(place: str, factor: float) -> None:
    for width in WIDTHS:
        x, skip, weight = drawn(1, 3, width), drawn(2, 3, width), drawn(3, width)
        normed, total = np.zeros_like(x), np.zeros_like(x)
        of_processor(place, skip_norm, width, EPS, factor)(x, skip, weight, normed, total)
        np.testing.assert_allclose(total, x + skip * np.float32(factor), atol=3e-7)
        np.testing.assert_allclose(normed, rooted(total, weight), rtol=1e-6, atol=1e-7)
        if factor == 1:
            inputs = {"input": x, "skip": skip, "gamma": weight}
            theirs = operator("SkipSimplifiedLayerNormalization", "com.microsoft", inputs, ["out", "", "", "sum"])
            np.testing.assert_allclose(normed, theirs[0], atol=2e-6)
            np.testing.assert_array_equal(total, theirs[1])


def test_a_norm_is_that_of_the_standard(place: str) -> None:
    for width in WIDTHS:
        x, weight = drawn(1, 3, width), drawn(3, width)
        # one row of numbers whose squares are near eps, and one of zeros
        x[1], x[2] = x[1] * 1e-3, 0
        out = np.ones_like(x)
        of_processor(place, norm, width, EPS)(x, weight, out)
        np.testing.assert_allclose(out, rooted(x, weight), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(out, operator("RMSNormalization", "", {"x": x, "scale": weight}, ["y"])[0], atol=2e-6)


def test_a_gate_is_right_for_small_and_large_numbers(place: str) -> None:
    for width in (96, 20):
        halves = drawn(5, 4, 2 * width) * np.array([[1], [10], [1e-3], [20]], np.float32)
        halves[0, :12] = [0, -0.0, 1e-30, -1e-30, 88, -88, 100, -100, 1e4, -1e4, 1e30, -1e30]
        out = np.ones((4, width), np.float32)
        of_processor(place, gate, width)(halves, out)
        first, second = halves[:, :width].astype(np.float64), halves[:, width:]
        with np.errstate(over="ignore"):
            expected = first / (1 + np.exp(-first)) * second
        # below -20, where the exponent's own last bit is more than that, a value is next to nothing
        near = first > -20
        np.testing.assert_allclose(out[near], expected[near], rtol=1e-6)
        np.testing.assert_allclose(out[~near], expected[~near], rtol=5e-6, atol=1e-35)


def test_many_rows_are_those_of_one(place: str) -> None:
    width = 1024
    many = drawn(6, SHARED // (2 * width) + 3, 2 * width)
    kernel, out, alone = (
        of_processor(place, gate, width),
        np.zeros((len(many), width), np.float32),
        np.zeros((1, width), np.float32),
    )
    kernel(many, out)
    for row in (0, len(many) - 1):
        kernel(many[row : row + 1], alone)
        np.testing.assert_array_equal(alone[0], out[row])
