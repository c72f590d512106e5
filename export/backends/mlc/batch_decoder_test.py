"""A token of each of several sequences in one call of a decoder that reads more than rows, against calls of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from tvm.target import Target

from export.backends.mlc.blocks.conftest import TARGET, Built, build
from export.backends.mlc.blocks.decoder import Decoder, TokenEmbedding
from export.backends.mlc.blocks.linear import Layers
from export.backends.mlc.function_list import _decoder_functions, _service_functions
from export.backends.mlc.model import ModelLibrary
from export.backends.mlc.support import decoder_sides, explicit_positions, sequence_sides, text_selectors
from export.checkpoint.opened import open_folder
from export.families.registry import families
from export.specs import ModelSpec
from parity_tests.conftest import GOLDENS
from runtime_py.backends.mlc_rows import PAGE, PagedSequences
from runtime_py.preprocess.base import ArrangesRows

SIDED = {"cogvlm2": "batch_run_decoder", "wemm": "batch_decode", "awaker2.5-vl": "batch_run_decoder"}
"""Families by the function that takes a text token of each of several sequences."""
BATCH, CAPACITY, CHUNK, STEPS = 3, 32, 16, 3
CREATE = "create_tir_paged_kv_cache"


class DecoderAlone(ModelLibrary):
    """What a library has of decoder, cache and embedding table."""

    def __init__(self, spec: ModelSpec, sequences: int = BATCH) -> None:
        layers = Layers({}, "float32")
        self.model, self.dtype, self.target, self.sequences, self.sent = spec, "float32", Target(TARGET), sequences, None
        self.embed_tokens = TokenEmbedding(spec.embed, layers)
        self.decoder = Decoder(spec.decoder, layers)


class Sequences:
    """Sequences of one cache of such a library, each with rows, positions and a request of its own."""

    def __init__(self, spec: ModelSpec, *names: str) -> None:
        library, self.spec = DecoderAlone(spec), spec
        listed = {**_decoder_functions(library), **_service_functions(library)}
        methods = {name: (listed[name].method, _arguments(listed[name])) for name in (CREATE, *names)}
        self.rng = np.random.default_rng(3)
        self.weights = {
            name: self.rng.normal(0, 0.2 if len(parameter.shape) > 1 else 0.5, [int(size) for size in parameter.shape])
            for name, parameter in library.named_parameters()
        }
        self.library: Built = build(library, methods, {k: v.astype(np.float32) for k, v in self.weights.items()})
        self.paged, self.names = PagedSequences(tvm), [tensor.name for tensor in decoder_sides(spec)]
        self.requests = self.rng.normal(0, 1, (BATCH, 1, spec.decoder.hidden)).astype(np.float32)

    def begin(self, count: int) -> list[Any]:
        sizes = (count, count * CAPACITY, CHUNK, PAGE, 0)
        shapes = (tvm.runtime.ShapeTuple([size]) for size in sizes)
        return self.paged.begin(self.library(CREATE, *shapes, parameters=False), CAPACITY, count)

    def embeds(self, tokens: int) -> np.ndarray:
        return self.rng.normal(0, 1, (1, tokens, self.spec.decoder.hidden)).astype(np.float32)

    def sides(self, number: int, at: int, tokens: int) -> dict[str, np.ndarray]:
        """Of a sequence: of a prompt's tokens some are a picture's; positions are not the cache's own."""
        picture = (np.arange(tokens) % 4 == 1) & (tokens > 1)
        rows, rest = np.flatnonzero(picture), np.flatnonzero(~picture)
        axes = (len(self.spec.decoder.rope.sections),) if self.spec.decoder.rope.sections else ()
        made = {
            "position_ids": np.broadcast_to(np.arange(at, at + tokens) + 5 * number, (*axes, 1, tokens)),
            "gate_input": self.requests[number],
            "image_index": rows,
            "delta_index": np.where(picture, np.cumsum(picture) - 1, len(rows)),
            "language_index": rest,
            "vision_index": rows,
            "restore_index": np.argsort(np.concatenate([rest, rows]), kind="stable"),
        }
        return {name: fed(made[name]) for name in self.names}

    def alone(self, state: Any, number: int, embeds: np.ndarray) -> np.ndarray:
        """Logits (vocabulary,) of the last of the tokens, by a call of their own."""
        tokens = embeds.shape[1]
        sides = self.sides(number, state.length, tokens)
        with self.paged.fed([state], tokens):
            last = np.array([tokens - 1], np.int32)
            return self.library("run_decoder", embeds, last, *sides.values(), state.cache)[0].numpy()[0, 0]

    def together(self, name: str, states: list[Any], embeds: list[np.ndarray]) -> np.ndarray:
        """Logits (sequences, vocabulary) of a token of each, by one call of a function of several sequences."""
        taken = [tensor.name for tensor in sequence_sides(self.spec)] if name == "batch_run_decoder" else []
        each = [self.sides(number, state.length, 1) for number, state in enumerate(states)]
        sides = [np.concatenate([own[side] for own in each], axis=-2) for side in taken]
        with self.paged.fed(states, 1):
            return self.library(name, np.concatenate(embeds), *map(fed, sides), states[0].cache)[0].numpy()[:, 0]


def opened(golden: str) -> ModelSpec:
    """One layer of it: what is compiled here is compiled in every quick run of the tests."""
    spec = open_folder(GOLDENS / golden).spec
    return replace(spec, decoder=replace(spec.decoder, layers=1))


def fed(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32 if values.dtype == np.float32 else np.int32)


def _arguments(method: Any) -> dict[str, Any]:
    return dict(zip(method.arg_names, method.arg_specs, strict=True))


@pytest.mark.parametrize("golden", SIDED)
def test_tokens_of_several_sequences_have_the_bits_of_calls_of_their_own(golden: str) -> None:
    spec, function = opened(golden), SIDED[golden]
    made = Sequences(spec, "run_decoder", function)
    shared, single = made.begin(BATCH), [made.begin(1)[0] for _ in range(BATCH)]
    for number, tokens in enumerate((9, 1, 14)):
        prompt = made.embeds(tokens)
        assert np.array_equal(made.alone(shared[number], number, prompt), made.alone(single[number], number, prompt))
    for _ in range(STEPS):
        steps = [made.embeds(1) for _ in range(BATCH)]
        rows = made.together(function, shared, steps)
        assert np.isfinite(rows).all() and len(np.unique(rows[:, 0])) == BATCH
        for number, row in enumerate(rows):
            np.testing.assert_array_equal(row, made.alone(single[number], number, steps[number]))


def test_stock_steps_of_several_sequences_take_the_positions_of_each() -> None:
    """A decoder that rotates outside the cache, asked for text by MLC's own engine."""
    spec = opened("qwen2-vl")
    assert explicit_positions(spec.decoder)
    made = Sequences(spec, "batch_prefill", "batch_decode")
    shared, single = made.begin(BATCH), [made.begin(1)[0] for _ in range(BATCH)]
    for number, tokens in enumerate((9, 1, 14)):
        prompt = made.embeds(tokens)
        for state in (shared[number], single[number]):
            with made.paged.fed([state], tokens):
                made.library("batch_prefill", prompt, np.array([tokens - 1], np.int32), state.cache)
    steps = [made.embeds(1) for _ in range(BATCH)]
    rows = made.together("batch_decode", shared, steps)
    for number, row in enumerate(rows):
        np.testing.assert_array_equal(row, made.together("batch_decode", [single[number]], [steps[number]])[0])


@pytest.mark.parametrize("golden", [*SIDED, "qwen2-vl", "cogvlm2-video"])
def test_every_side_joins_or_is_that_of_a_text_token(golden: str) -> None:
    spec = opened(golden)
    selectors = text_selectors(spec)
    joining = [tensor.name for tensor in sequence_sides(spec)]
    assert sorted([*joining, *selectors]) == sorted(tensor.name for tensor in decoder_sides(spec))
    processor = families()[spec.family].make_processor(spec, None)
    if isinstance(processor, ArrangesRows) and selectors:
        layout = processor.layout(np.arange(5)[None] + 3, [])
        fed_next = processor.arrange(processor.next_inputs(layout, 7))
        assert {name: fed_next[name].tolist() for name in selectors} == selectors
    else:
        assert not selectors


@pytest.mark.parametrize("golden", SIDED)
def test_a_library_for_one_sequence_has_the_functions_of_before(golden: str) -> None:
    spec = opened(golden)
    one, several = (set(_decoder_functions(DecoderAlone(spec, count))) for count in (1, BATCH))
    assert several - one == ({"batch_run_decoder"} & {SIDED[golden]}) and not one - several
