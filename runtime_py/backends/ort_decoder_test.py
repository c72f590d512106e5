"""Calls over cache buffers that keep their binding: what is new in a call is bound, what is left out is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime_py.backends.ort_decoder import CacheBuffers, DecoderCalls, DeviceArray

WIDTH = 3
PAST = "past_key_values.0.key"
bind = onnxruntime.OrtValue.ortvalue_from_numpy


@pytest.fixture(scope="module")
def session() -> Any:
    """logits = embeds + more, where more is 10 if nothing is fed; the cache counts calls."""
    floats = TensorProto.FLOAT
    rows: list[str | int | None] = ["batch", "tokens", WIDTH]
    cache: list[str | int | None] = ["batch", 2]
    given: dict[str, list[str | int | None]] = {"inputs_embeds": rows, "more": [1], PAST: cache}
    nodes = [
        helper.make_node("Add", ["inputs_embeds", "more"], ["logits"]),
        helper.make_node("Add", [PAST, "one"], ["present.0.key"]),
    ]
    constants = [numpy_helper.from_array(np.array([value], np.float32), name) for name, value in (("more", 10), ("one", 1))]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, floats, shape) for name, shape in given.items()],
        [
            helper.make_tensor_value_info(name, floats, shape)
            for name, shape in {"logits": rows, "present.0.key": cache}.items()
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def embeds(value: float, tokens: int = 1) -> np.ndarray:
    return np.full((1, tokens, WIDTH), value, np.float32)


def test_a_binding_is_used_again_and_takes_what_is_new(session: Any) -> None:
    calls, cache = DecoderCalls(session, bind, WIDTH), np.zeros((1, 2), np.float32)
    buffers = CacheBuffers({PAST: bind(cache)})
    assert calls({"inputs_embeds": embeds(1)}, (1, 1), buffers).tolist() == [[[11.0] * WIDTH]]
    (first,) = buffers.bindings.values()
    assert calls({"inputs_embeds": embeds(2, 3)}, (1, 3), buffers).tolist() == [[[12.0] * WIDTH] * 3]
    assert list(buffers.bindings.values()) == [first] and cache.tolist() == [[2.0, 2.0]]
    assert calls.seconds > 0


def test_an_input_that_is_left_out_is_not_the_one_of_the_call_before(session: Any) -> None:
    calls, buffers = DecoderCalls(session, bind, WIDTH), CacheBuffers({PAST: bind(np.zeros((1, 2), np.float32))})
    fed = {"inputs_embeds": embeds(1), "more": np.array([5], np.float32)}
    assert calls(fed, (1, 1), buffers)[0, 0, 0] == 6
    assert calls({"inputs_embeds": embeds(1)}, (1, 1), buffers)[0, 0, 0] == 11


def test_what_is_forgotten_holds_nothing_and_can_be_called_again(session: Any) -> None:
    calls, buffers = DecoderCalls(session, bind, WIDTH), CacheBuffers({PAST: bind(np.zeros((1, 2), np.float32))})
    calls({"inputs_embeds": embeds(1)}, (1, 1), buffers)
    calls.forget()
    assert buffers.bindings == {}
    assert calls({"inputs_embeds": embeds(2)}, (1, 1), buffers)[0, 0, 0] == 12


def test_rows_named_by_address_are_written_where_they_lie(session: Any) -> None:
    cache = np.zeros((4, 2), np.float32)
    rows = DeviceArray(cache.ctypes.data, cache.shape, cache.dtype, "cpu").rows(1, 3)
    calls, buffers = DecoderCalls(session, bind, WIDTH), CacheBuffers({PAST: rows})
    fed = {"inputs_embeds": np.concatenate([embeds(1), embeds(2)])}
    for counted in (1, 2):
        assert calls(fed, (2, 1), buffers)[:, 0, 0].tolist() == [11, 12]
        assert cache[:, 0].tolist() == [0, counted, counted, 0]


class Elsewhere:
    """A session whose provider has memory of its own: what a binding is given as an input is copied there at once."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs
        self.get_overridable_initializers = session.get_overridable_initializers

    def io_binding(self) -> Any:
        binding = self._session.io_binding()
        return SimpleNamespace(
            real=binding,
            bind_ortvalue_input=lambda name, value: binding.bind_ortvalue_input(name, bind(value.numpy().copy())),
            bind_ortvalue_output=binding.bind_ortvalue_output,
        )

    def run_with_iobinding(self, binding: Any) -> None:
        self._session.run_with_iobinding(binding.real)


def test_a_provider_that_copies_its_inputs_is_given_the_cache_as_it_is_now(session: Any) -> None:
    calls, cache = DecoderCalls(Elsewhere(session), bind, WIDTH, copies=True), np.zeros((1, 2), np.float32)
    buffers = CacheBuffers({PAST: bind(cache)})
    for counted in (1, 2, 3):
        assert calls({"inputs_embeds": embeds(1)}, (1, 1), buffers)[0, 0, 0] == 11
        assert cache.tolist() == [[counted, counted]]
    assert not buffers.bindings
