"""The step of a demo decoder as machine code: what the graph gives, whoever else is in the call; what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export.backends.onnx.decoder_library.kernels import LibraryKernels, Rows
from export.backends.onnx.decoder_library.library import ENTRIES, TOKENS, compile_decoder
from export.backends.onnx.decoder_library.translation import Translation
from export.backends.onnx.decoder_library.written import FILES
from export.pipeline import export
from export.request import ExportRequest
from parity_tests.conftest import GOLDENS
from runtime_py.backends import decoder_library as runtime
from runtime_py.backends.decoder_library import MOST_GUESSES, MOST_SEQUENCES, READ, READ_ALL, VERIFY
from runtime_py.backends.ort import OrtBackend
from runtime_py.backends.ort_rows import OrtRow
from runtime_py.backends.records import DECODER_LIBRARY
from runtime_py.errors import EdgeproofError, UnsupportedModelError, UsageError
from runtime_py.package import read

LENGTHS = (9, 1, 5)
"""Positions that are filled of each sequence."""


def opened(package: Path, own_code: bool = True) -> OrtBackend:
    given = read(package)
    return OrtBackend(given.folder, given.manifest, threads=1, own_code=own_code)


def filled(backend: OrtBackend, lengths: Sequence[int]) -> list[OrtRow]:
    """Sequences with drawn positions, the same in every backend."""
    rows = backend.start_batch(len(lengths), 16)
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        backend.forward(row, token(backend, number, 0, length), np.array([-1]))
    return rows


def token(backend: OrtBackend, seed: int, first: int, count: int) -> dict[str, np.ndarray]:
    hidden = backend.contracts["decoder"].inputs[0].shape[-1]
    drawn = np.random.default_rng(seed).standard_normal((1, count, int(hidden))).astype(np.float32)
    return {"inputs_embeds": drawn, "position_ids": np.arange(first, first + count)[None]}


def stepped(backend: OrtBackend, rows: list[OrtRow]) -> list[np.ndarray]:
    given = [token(backend, 100 + number, row.length, 1) for number, row in enumerate(rows)]
    return [np.array(logits) for logits in backend.forward_batch(rows, given)]


def caches(rows: Sequence[OrtRow]) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in rows[0].pool.values(0, len(rows)).arrays.items()}


def test_a_step_is_that_of_the_graph(library_package: Path) -> None:
    library, graph = opened(library_package), opened(library_package, own_code=False)
    assert library.library is not None and graph.library is None
    ours, theirs = filled(library, LENGTHS), filled(graph, LENGTHS)
    said, expected = stepped(library, ours), stepped(graph, theirs)
    assert [row.length for row in ours] == [length + 1 for length in LENGTHS]
    for one, other in zip(said, expected, strict=True):
        # both round inputs of layers to bytes: a number on a boundary goes to either side
        assert np.abs(one - other).max() < 0.03 * np.abs(other).max()
    for name, cache in caches(theirs).items():
        assert np.abs(caches(ours)[name].astype(np.float32) - cache).max() < 0.03 * np.abs(cache).max()


def test_a_sequence_among_others_is_the_sequence_alone_bit_for_bit(library_package: Path) -> None:
    backend = opened(library_package)
    together = stepped(backend, filled(backend, LENGTHS))
    for number, length in enumerate(LENGTHS):
        row = backend.start_batch(1, 16)[0]
        backend.forward(row, token(backend, number, 0, length), np.array([-1]))
        alone = backend.forward_batch([row], [token(backend, 100 + number, row.length, 1)])
        assert np.array_equal(alone[0], together[number])


def test_guesses_are_told_what_steps_are_told_bit_for_bit(library_package: Path) -> None:
    backend = opened(library_package)
    assert backend.library is not None and VERIFY in backend.library.functions
    begun, given = token(backend, 0, 0, 5), token(backend, 1, 5, 8)
    together, alone = backend.start(16), backend.start(16)
    for state in (together, alone):
        backend.forward(state, begun, np.array([-1]))
    said = backend.forward(together, given, np.arange(8))
    for at in range(8):
        step = {name: array[:, at : at + 1] for name, array in given.items()}
        assert np.array_equal(backend.forward(alone, step, np.array([-1]))[0, 0], said[0, at])
    for name, array in alone.buffers.arrays.items():
        assert np.array_equal(array, together.buffers.arrays[name])


def test_a_library_of_before_reads_guesses_as_a_prompt(library_package: Path) -> None:
    backend = opened(library_package)
    assert backend.library is not None
    given = token(backend, 0, 0, 7)
    now = backend.forward(backend.start(16), given, np.arange(7))
    del backend.library.functions[VERIFY]
    before = backend.forward(backend.start(16), given, np.arange(7))
    # attention of prompts is in sixteen bits, and layers round their inputs to bytes: one on a boundary goes to either side
    assert np.abs(now - before).max() < 0.03 * np.abs(before).max()


def test_graph_and_library_take_turns_over_one_cache(library_package: Path) -> None:
    library, graph = opened(library_package), opened(library_package, own_code=False)
    assert library.library is not None
    state, other = library.start(32), graph.start(32)
    for turn, (first, count) in enumerate(((0, 4), (4, 1), (5, 3), (8, 1), (9, 2))):
        if turn % 2:  # the library works on what the graph left behind
            for name, array in other.buffers.arrays.items():
                state.buffers.arrays[name][...] = array
        said = library.forward(state, token(library, turn, first, count), np.array([-1]))
        expected = graph.forward(other, token(graph, turn, first, count), np.array([-1]))
        assert said.shape == expected.shape == (1, 1, expected.shape[-1])
        assert np.abs(said - expected).max() < 0.03 * np.abs(expected).max()


def test_logits_are_those_of_the_tokens_that_are_asked_for(library_package: Path) -> None:
    backend = opened(library_package)
    tokens = MOST_GUESSES + 2
    given, whole = token(backend, 0, 0, tokens), np.arange(tokens)
    every = backend.forward(backend.start(32), given, whole)
    for positions in ([tokens - 1], [-1], [2, 5], [5, 2], [0, -1, 3]):
        said = backend.forward(backend.start(32), given, np.array(positions))
        assert np.array_equal(said[0], every[0, positions])


def test_behind_the_last_attention_of_a_prompt_goes_the_token_alone_that_gets_logits(library_package: Path) -> None:
    backend, tokens = opened(library_package), MOST_GUESSES + 2
    states = [backend.start(32) for _ in range(2)]
    # logits of two tokens take the function that gives those of all
    said = [
        backend.forward(state, token(backend, 0, 0, tokens), np.array(at))
        for state, at in zip(states, ([-1], [0, -1]), strict=True)
    ]
    assert np.array_equal(said[0][0, -1], said[1][0, -1])
    for name, array in states[0].buffers.arrays.items():
        assert np.array_equal(array, states[1].buffers.arrays[name])
    graph = library_package / read(library_package).manifest["backends"]["onnx"]["stages"]["decoder"]["file"]
    translation = Translation(onnx.load(str(graph), load_external_data=False).graph, LibraryKernels(FILES.variants()[0]))
    module = translation.module([entry for entry in ENTRIES if entry.kind is Rows.PROMPT])
    behind = {name: str(module[name]).rpartition("call_tir_inplace")[2] for name in (READ, READ_ALL)}
    assert f"Tensor(({TOKENS}, " in behind[READ_ALL]
    assert f"Tensor(({TOKENS}, " not in behind[READ]


def test_a_prompt_in_pieces_is_the_prompt_at_once(library_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = opened(library_package)
    given, asked = token(backend, 0, 0, MOST_GUESSES + 5), np.array([9, 0, 3])
    once = backend.forward(backend.start(32), given, asked)
    monkeypatch.setattr(runtime, "MOST_TOKENS", 4)
    assert np.array_equal(backend.forward(backend.start(32), given, asked), once)


def test_more_sequences_than_it_is_planned_for_go_through_the_graph(library_package: Path) -> None:
    backend = opened(library_package)
    assert backend.library is not None
    rows = filled(backend, [2] * (MOST_SEQUENCES + 1))
    before = backend.library.seconds
    stepped(backend, rows)
    assert backend.library.seconds == before


def test_libraries_and_index_are_listed_and_every_run_gives_the_same_bytes(library_package: Path, tmp_path: Path) -> None:
    given = read(library_package)
    block = given.manifest["backends"]["onnx"]
    assert set(block[DECODER_LIBRARY]["libraries"]) == set(FILES.variants())
    listed = {row["path"] for row in given.manifest["files"]}
    assert {block[DECODER_LIBRARY]["index"], *block[DECODER_LIBRARY]["libraries"].values()} <= listed
    variant, file = next(iter(block[DECODER_LIBRARY]["libraries"].items()))
    compile_decoder(library_package / block["stages"]["decoder"]["file"], variant, tmp_path / "again.so")
    assert (tmp_path / "again.so").read_bytes() == (library_package / file).read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda node: setattr(node, "op_type", "Erf"), "Erf"),
        (lambda node: node.attribute.append(onnx.helper.make_attribute("interleaved", 1)), "neighbouring channels"),
    ],
)
def test_what_is_not_translated_is_named(library_package: Path, tmp_path: Path, change: Any, words: str) -> None:
    graph = library_package / read(library_package).manifest["backends"]["onnx"]["stages"]["decoder"]["file"]
    model = onnx.load(str(graph), load_external_data=False)
    node = next(each for each in model.graph.node if each.op_type == "RotaryEmbedding")
    kept = [each for each in node.attribute if each.name != "interleaved"]
    del node.attribute[:]
    node.attribute.extend(kept)
    change(node)
    altered = tmp_path / graph.name
    altered.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedModelError, match=words):
        compile_decoder(altered, FILES.variants()[0], tmp_path / "x.so")


@pytest.mark.parametrize(
    ("model", "options", "error", "words"),
    [
        ("minicpm-v", {"symmetric": False}, UsageError, "zero points"),
        ("minicpm-v", {"preset": "mixed"}, UsageError, "zero points"),
    ],
)
def test_what_it_does_not_have_is_refused_before_any_work(
    tmp_path: Path, model: str, options: dict[str, Any], error: type[EdgeproofError], words: str
) -> None:
    request = ExportRequest(
        str(GOLDENS / model),
        "cpu",
        output=tmp_path / "package",
        skip_verify=True,
        without_tokenizer=True,
        beyond_trained=True,
        options={"decoder_library": True, **options},
    )
    with pytest.raises(error, match=words):
        export(request, None)
    assert not list(tmp_path.iterdir())
