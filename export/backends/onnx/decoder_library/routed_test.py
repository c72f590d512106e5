"""Libraries of decoders whose tokens part ways: visual experts, deltas of image rows, adapters that a request chooses."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export.backends.onnx.decoder_library.library import compile_decoder
from export.backends.onnx.decoder_library.written import FILES
from export.graphs.writer import lying
from export.pipeline import export
from export.request import ExportRequest
from runtime_py.backends import decoder_library as runtime
from runtime_py.backends.decoder_library import chosen_variant
from runtime_py.backends.ort import OrtBackend
from runtime_py.backends.records import DECODER_LIBRARY
from runtime_py.errors import UsageError
from runtime_py.package import read

pytestmark = pytest.mark.slow
ADAPTERS = {"cogvlm2": 0, "wemm": 5, "awaker2.5-vl": 4}
"""By family, matrices of a layer whose rows are deltas."""
NEAR = 0.03
"""Of the largest logit: both round inputs of layers to bytes, and a number on a boundary goes to either side."""

RESTLESS, MOVED, DRAWS = "cogvlm2", 2e-4, 3
"""Moved by so much of its inputs, this one's graph parts from itself by more than `NEAR`: the library may part from it as
far as it does itself in the worst of several draws, and no farther than twice `NEAR`."""

LOUDER = 8
"""What deltas are multiplied with: those of the demos are hardly more than roundings."""


@dataclass(frozen=True)
class Backends:
    """A package's decoder by its library and by its graph."""

    family: str
    library: OrtBackend
    graph: OrtBackend

    def said(self, backend: OrtBackend, draw: int | None = None) -> list[np.ndarray]:
        """Logits of prompts and of two steps behind each: text alone, image rows in the middle, first, and nothing else.

        Args:
            draw: of noise that moves the inputs by `MOVED` of themselves; None of none.
        """
        noise, last, said = np.random.default_rng(draw), np.array([-1]), []
        for images in ((), range(3, 15), (0, 1, 19), range(20)):
            state = backend.start(32)
            calls = [self.given(7, 0, 20, list(images)), *(self.given(70 + at, 20 + at, 1) for at in range(2))]
            for number, inputs in enumerate(calls):
                if draw is not None:
                    embeds = inputs["inputs_embeds"]
                    inputs["inputs_embeds"] = embeds + MOVED * embeds * noise.standard_normal(embeds.shape, np.float32)
                said.append((backend.forward if number else backend.prefill)(state, inputs, last))
        return said

    def given(
        self, seed: int, first: int, count: int, images: Sequence[int] = (), request: int = 0
    ) -> dict[str, np.ndarray]:
        """Inputs of a call; places of image rows among its tokens."""
        contract = {tensor.name: tensor for tensor in self.library.contracts["decoder"].inputs}
        hidden = int(contract["inputs_embeds"].shape[-1])
        places = np.arange(first, first + count)[None]
        inputs: dict[str, np.ndarray] = {
            "inputs_embeds": np.random.default_rng(seed).standard_normal((1, count, hidden)).astype(np.float32),
            "position_ids": np.stack([places] * 3) if len(contract["position_ids"].shape) > 2 else places,
        }
        rows, text = np.array(images, np.int64), np.setdiff1d(np.arange(count), images)
        if "gate_input" in contract:
            inputs["gate_input"] = np.random.default_rng(request).standard_normal((1, hidden)).astype(np.float32)
        if "image_index" in contract:
            index = np.full(count, len(rows))
            index[rows] = np.arange(len(rows))
            inputs |= {"image_index": rows, "delta_index": index}
        if "vision_index" in contract:
            back = np.argsort(np.concatenate([text, rows]))
            inputs |= {"language_index": text, "vision_index": rows, "restore_index": back}
        return inputs


def make_louder(graph: Path) -> int:
    """Multiply the deltas of a graph's adapters, in its data file; how many matrices these are."""
    held = onnx.load(str(graph), load_external_data=False).graph.initializer
    scales = {tensor.name: tuple(tensor.dims) for tensor in held if "lora_b" in tensor.name and "_scales" in tensor.name}
    for name, place in lying(graph, list(scales)).items():
        lies = np.memmap(graph.parent / place.file, np.float16, "r+", place.offset, scales[name])
        assert np.abs(lies).max() * LOUDER < np.finfo(np.float16).max
        lies *= LOUDER
    return len(scales)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By family, with a library for this processor alone."""

    @cache
    def of_family(family: str) -> Backends:
        folder = tmp_path_factory.mktemp(family)
        export(ExportRequest(family, "cpu", weights="demo", output=folder / "package", skip_verify=True), None)
        given = read(folder / "package")
        block = given.manifest["backends"]["onnx"]
        variant = chosen_variant(dict.fromkeys(FILES.variants(), ""))
        library, index = FILES.library("onnx", variant), FILES.index("onnx")
        decoder = given.folder / block["stages"]["decoder"]["file"]
        model = onnx.load(str(decoder), load_external_data=False).graph
        layers = sum(node.op_type == "GroupQueryAttention" for node in model.node)
        assert make_louder(decoder) == ADAPTERS[family] * layers
        told = compile_decoder(decoder, variant, given.folder / library)
        (given.folder / index).write_text(json.dumps(told), encoding="utf-8")
        named = {"libraries": {variant: str(library)}, "index": str(index), "tvm": importlib.metadata.version("apache-tvm")}
        rows = [{"path": str(path), "bytes": 0, "sha256": ""} for path in (library, index)]
        backends = {**given.manifest["backends"], "onnx": {**block, DECODER_LIBRARY: named}}
        manifest = {**given.manifest, "files": [*given.manifest["files"], *rows], "backends": backends}
        graph = OrtBackend(given.folder, given.manifest, threads=1)
        return Backends(family, OrtBackend(given.folder, manifest, threads=1, own_code=True), graph)

    return of_family


@pytest.fixture(params=ADAPTERS)
def pair(request: pytest.FixtureRequest, packages: Any) -> Backends:
    made: Backends = packages(request.param)
    assert made.library.library is not None and made.graph.library is None
    return made


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """Of the largest logit."""
    return float(np.abs(one - other).max() / np.abs(other).max())


def test_prompts_and_steps_are_the_graphs(pair: Backends) -> None:
    expected = pair.said(pair.graph)
    found = [apart(*each) for each in zip(pair.said(pair.library), expected, strict=True)]
    if pair.family == RESTLESS:
        drawn = [pair.said(pair.graph, draw) for draw in range(DRAWS)]
        floor = [[apart(*each) for each in zip(said, expected, strict=True)] for said in drawn]
        assert NEAR < np.max(floor) < 4 * NEAR, "the graph is as restless as it was"
        assert np.median(found) < min(1.5 * np.median(floor), NEAR) and max(found) < min(np.max(floor), 2 * NEAR)
    else:
        assert max(found) < NEAR
    # the graph was never opened
    assert pair.library.library is not None and pair.library.library.seconds and not pair.library._calls


def test_image_rows_and_requests_change_what_is_said(pair: Backends) -> None:
    """Else the test above would say nothing of adapters."""
    last = np.array([-1])

    def said(**change: Any) -> np.ndarray:
        return pair.library.prefill(pair.library.start(32), pair.given(7, 0, 20, **change), last)

    other = said(request=5) if pair.family == "awaker2.5-vl" else said(images=range(3, 15))
    assert apart(other, said()) > 4 * NEAR


def test_a_sequence_among_others_and_a_guess_have_the_bits_of_a_step(pair: Backends) -> None:
    backend, last = pair.library, np.array([-1])
    images = [2, 3] if pair.family != "awaker2.5-vl" else []
    rows = backend.start_batch(3, 16)
    for number, row in enumerate(rows):
        backend.forward(row, pair.given(number, 0, 5 + number, images), last)
    steps = [pair.given(10 + number, 5 + number, 1) for number in range(3)]
    together = backend.forward_batch(rows, steps)
    for number in range(3):
        alone, guessed = backend.start(16), backend.start(16)
        begun = pair.given(number, 0, 5 + number, images)
        backend.forward(alone, begun, last)
        backend.forward(guessed, begun, last)
        stepped = backend.forward(alone, steps[number], last)
        assert np.array_equal(stepped[0], together[number])
        two = pair.given(20, 5 + number, 2)
        two["inputs_embeds"][:, :1] = steps[number]["inputs_embeds"]
        told = backend.forward(guessed, two, np.arange(2))
        assert np.array_equal(told[0, :1], stepped[0])
        step = pair.given(20, 6 + number, 1)
        step["inputs_embeds"] = two["inputs_embeds"][:, 1:]
        assert np.array_equal(told[0, 1:], backend.forward(alone, step, last)[0])


def test_a_prompt_in_pieces_is_the_prompt_at_once(pair: Backends, monkeypatch: pytest.MonkeyPatch) -> None:
    given, asked = pair.given(3, 0, 20, [4, 5, 6, 7, 8, 13]), np.array([9, 0, 3])
    once = pair.library.forward(pair.library.start(32), given, asked)
    monkeypatch.setattr(runtime, "MOST_TOKENS", 6)
    assert np.array_equal(pair.library.forward(pair.library.start(32), given, asked), once)


def test_sequences_of_other_requests_share_no_call(packages: Any) -> None:
    pair: Backends = packages("awaker2.5-vl")
    rows = pair.library.start_batch(2, 16)
    for row in rows:
        pair.library.forward(row, pair.given(1, 0, 5), np.array([-1]))
    one, other = pair.library.forward_batch(rows, [pair.given(9, 5, 1, request=number) for number in (0, 5)])
    assert apart(one, other) > NEAR


def test_indices_that_do_not_fit_are_refused(packages: Any) -> None:
    for family, name in (("wemm", "delta_index"), ("cogvlm2", "vision_index")):
        pair: Backends = packages(family)
        given = pair.given(1, 0, 20, [4, 5])
        given[name] = given[name] + 1
        with pytest.raises(UsageError, match="the tokens 0 to 19"):
            pair.library.forward(pair.library.start(32), given, np.array([-1]))
