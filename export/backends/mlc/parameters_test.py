"""Names, shapes and bytes of stored parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.backends.mlc import parameters
from export.backends.mlc.parameters import ParameterBytes, parameter_list
from export.backends.mlc.schemes import SCHEMES, scheme_of
from export.quantisation.codes import RoundToNearest
from export.quantisation.grids import GRIDS
from export.quantisation.spec import Assignment, LayerShape, Storage
from runtime_py.errors import CheckpointError, UsageError

SHAPES = {"a.weight": (10, 80), "b.weight": (6, 64), "norm.weight": (80,)}


class Weights:
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    def shape(self, target):
        return tuple(self.tensors[target].shape)

    def tensor(self, target):
        return self.tensors[target]

    def rows(self, target, start, stop):
        return self.tensors[target][start:stop]


def reader(name: str, weights: Weights) -> tuple[ParameterBytes, list[parameters.Parameter]]:
    scheme = SCHEMES[name]
    assignments = {
        layer: Assignment(LayerShape(layer, "decoder", *SHAPES[f"{layer}.weight"]), Storage.INT4, scheme.grid)
        for layer in ("a", "b")
    }
    listed = parameter_list(SHAPES, assignments, scheme)
    return ParameterBytes(weights, RoundToNearest(weights, assignments, GRIDS), scheme), listed


def content(name: str, order=None) -> dict[str, bytes]:
    source, listed = reader(name, Weights())
    tensors = source.stored(listed)
    return {tensor.name: b"".join(tensor.chunks()) for tensor in (tensors if order is None else [tensors[i] for i in order])}


def test_shapes_with_a_tail_group():
    _, listed = reader("q4f16_1", Weights())
    assert [(p.name, p.shape, p.dtype) for p in listed] == [
        ("a.q_weight", (10, 12), "uint32"),
        ("a.q_scale", (10, 3), "float16"),
        ("b.q_weight", (6, 8), "uint32"),
        ("b.q_scale", (6, 2), "float16"),
        ("norm.weight", (80,), "float16"),
    ]


def test_words_hold_element_0_in_the_low_nibble():
    weights = Weights()
    codes = GRIDS["q4f16_1"].quantise(weights.tensors["b.weight"]).codes.numpy().astype(np.uint32)
    words = np.frombuffer(content("q4f16_1")["b.q_weight"], "<u4").reshape(6, 8)
    expected = sum(codes.reshape(6, 8, 8)[:, :, j] << (4 * j) for j in range(8))
    assert np.array_equal(words, expected)


def test_bytes_do_not_depend_on_chunks_or_order(monkeypatch):
    whole = content("q4f32_1")
    monkeypatch.setattr(parameters.row_chunks, "__defaults__", (700,))
    assert content("q4f32_1") == whole
    assert content("q4f32_1", order=[1, 3, 0, 2, 4]) == whole


def test_transposed_layout_is_the_transpose():
    plain, swapped = content("q4f16_1"), content("q4f16_0")
    words, swapped_words = (np.frombuffer(packed["a.q_weight"], "<u4") for packed in (plain, swapped))
    assert np.array_equal(swapped_words.reshape(12, 10), words.reshape(10, 12).T)
    assert np.array_equal(
        np.frombuffer(swapped["a.q_scale"], "<f2").reshape(3, 10), np.frombuffer(plain["a.q_scale"], "<f2").reshape(10, 3).T
    )


def test_float32_packages_keep_their_whole_weights_exactly():
    assert content("q4f32_1")["norm.weight"] == Weights().tensors["norm.weight"].numpy().tobytes()


def test_overflow_names_the_parameter():
    weights = Weights()
    weights.tensors["norm.weight"][3] = 1e6
    source, listed = reader("q4f16_1", weights)
    with pytest.raises(CheckpointError, match=r"norm\.weight"):
        list(source.stored(listed)[-1].chunks())
    weights.tensors["b.weight"][2, 2] = 1e6
    with pytest.raises(CheckpointError, match=r"b\.weight"):
        list(source.stored(listed)[2].chunks())


def test_a_scheme_has_our_name_and_mlcs():
    assert scheme_of("int4").name == scheme_of("q4f16_1").name == "q4f16_1"
    with pytest.raises(UsageError, match="q4f16_0"):
        scheme_of("q4f16_0")
