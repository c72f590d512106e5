"""A token of each of several sequences in one decoder call: an engine's graph and profiles, under the runtime's code.

The graph that TensorRT is given runs in ONNX Runtime on the processor; caches lie in rows of this machine's memory, at the
addresses that an engine would be told. What TensorRT's own kernels make of it is for `parity_tests.gpu_check`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx")

from export.backends.base import BuildOptions
from export.backends.tensorrt.backend import TensorrtBackend
from export.backends.tensorrt.conftest import OrtBackedTrt, OrtEngine, Traced, make_build
from export.backends.tensorrt.engine import engine_graph
from export.backends.tensorrt.engine_test import GOLDENS, TOLERANCES
from export.checkpoint.synthesize import SynthesisRequest, synthesize
from export.families.registry import families
from parity_tests.golden.case import question, read_case
from parity_tests.reference.reference import TorchBackend
from runtime_py.contracts import DECODER, STAGES
from runtime_py.engine.engine import Engine
from runtime_py.errors import UnsupportedModelError, UsageError
from runtime_py.generation.batch_step import step_batch
from runtime_py.generation.session import Limits as SessionLimits
from runtime_py.generation.session import Session
from targets.base import Limits
from targets.desktop_gpu import TARGET

BATCH = 4
LIMITS = Limits(context=128, prefill_chunk=16, batch=BATCH)
ROUNDS = ([0, 1, 2], [2, 0], [1, 2], [0, 1, 2])
"""Who is fed together, call after call."""

WHOLE = replace(LIMITS, context=192)
"""Holds the longest prompt of the cases and its answer."""

CHOOSING = ("awaker2.5-vl",)

CASES = ("omnilmm-12b", "wemm", "xverse-v", "qwen2-vl", "awaker2.5-vl", "cogvlm2", "cogvlm2-video")
RELATIVE = 2e-2
"""Of the largest logit: float16 arithmetic against float32 modules with the same integers."""

Made = Callable[[str], tuple[Traced, TorchBackend, OrtBackedTrt]]


def traced(folder: Path, precision: str, output: Path, limits: Limits = LIMITS, stages: Sequence[str] = STAGES) -> Traced:
    build = make_build(folder, precision, output, limits)
    return Traced(build, {stage: engine_graph(build, stage) for stage in stages})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A function precision -> minicpm-v's decoder, its reference, and the runtime over the graph of its engine."""
    kept: dict[str, tuple[Traced, TorchBackend, OrtBackedTrt]] = {}

    def backends(precision: str) -> tuple[Traced, TorchBackend, OrtBackedTrt]:
        if precision not in kept:
            folder = tmp_path_factory.mktemp(precision)
            one = traced(GOLDENS / "minicpm-v", precision, folder, stages=(DECODER,))
            kept[precision] = one, one.reference(), OrtBackedTrt(one, folder)
        return kept[precision]

    return backends


def engine(backend: OrtBackedTrt) -> OrtEngine:
    one = backend._engines[DECODER]
    assert isinstance(one, OrtEngine)
    return one


def drawn(tokens: int, hidden: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (1, tokens, hidden)).astype(np.float32)


def fed(embeds: np.ndarray, at: int) -> dict[str, np.ndarray]:
    return {"inputs_embeds": embeds, "position_ids": np.arange(at, at + embeds.shape[1])[None]}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_rows_of_a_call_say_what_the_modules_say(precision: str, made: Made) -> None:
    """Prompts of several lengths, calls of some of them in any order, a rewind, a copied beginning."""
    _, reference, ours = made(precision)
    hidden, last = reference.spec.decoder.hidden, np.array([-1])
    states, theirs = ours.start_batch(BATCH, LIMITS.context), [reference.start(LIMITS.context) for _ in range(BATCH)]
    sizes = (5, 40, 16, 1)
    for number, (tokens, state, their) in enumerate(zip(sizes, states, theirs, strict=True)):
        prompt = fed(drawn(tokens, hidden, number), 0)
        expected = reference.forward(their, prompt, last)
        assert np.abs(ours.forward(state, prompt, last) - expected).max() < TOLERANCES[precision]

    def step(who: list[int], seed: int) -> None:
        inputs = [fed(drawn(1, hidden, seed + number), states[number].length) for number in who]
        engine(ours).calls.clear()
        rows = ours.forward_batch([states[number] for number in who], inputs)
        assert engine(ours).calls == [("rows" if len(who) > 1 else "decode") if precision == "int4" else "any"]
        for number, row, given in zip(who, rows, inputs, strict=True):
            expected = reference.forward(theirs[number], given, last)[0]
            assert row.shape == expected.shape and np.abs(row - expected).max() < TOLERANCES[precision], (who, number)

    for seed, who in enumerate([[0, 1, 2, 3], [3, 1], [2, 0, 3], [1], [1, 2, 0]]):
        step(who, 100 * seed)

    def begun(number: int, length: int) -> None:
        """The reference of a row that holds a beginning of the second prompt."""
        theirs[number] = reference.start(LIMITS.context)
        reference.forward(theirs[number], fed(drawn(40, hidden, 1)[:, :length], 0), last)

    ours.rewind(states[1], 30)
    begun(1, 30)
    step([1, 3], 1000)
    ours.copy_prefix(states[1], states[2], 25)
    begun(2, 25)
    step([2, 1, 0], 2000)
    assert [state.length for state in states] == [theirs[number].length for number in range(BATCH)]


def test_more_than_a_call_takes_are_fed_in_several(made: Made) -> None:
    _, reference, ours = made("fp32")
    hidden, last = reference.spec.decoder.hidden, np.array([-1])
    assert ours.why_not_batched(6) == ""
    states = ours.start_batch(6, 32)
    prompts = [fed(drawn(3 + number, hidden, number), 0) for number in range(6)]
    for state, prompt in zip(states, prompts, strict=True):
        ours.forward(state, prompt, last)
    steps = [fed(drawn(1, hidden, 50 + number), state.length) for number, state in enumerate(states)]
    engine(ours).sequences.clear()
    rows = ours.forward_batch(states, steps)
    assert engine(ours).sequences == [4, 2]
    for row, prompt, step in zip(rows, prompts, steps, strict=True):
        alone = reference.start(32)
        reference.forward(alone, prompt, last)
        assert np.abs(row - reference.forward(alone, step, last)[0]).max() < TOLERANCES["fp32"]
    with pytest.raises(UsageError, match="1 tokens after 32"):
        states[0].length = 32
        ours.forward_batch(states[:2], steps[:2])
    ours.start_batch(2, 32)
    with pytest.raises(UsageError, match="taken over"):
        ours.forward_batch(states, steps)
    ours._free_caches()
    assert not ours.device.held


def test_an_engine_of_one_sequence_says_so(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _, ours = made("fp32")
    monkeypatch.setitem(ours.__dict__, "_sequences", 1)
    assert "built for one sequence a call (export with --batch" in ours.why_not_batched(2)
    told = Engine(ours, one.build.processor, SessionLimits(128, 16), slots=4)  # type: ignore[arg-type]
    assert len(told.slots) == 1 and "one after the other: the decoder's engine was built for one" in told.notice


def test_a_cache_whose_rows_have_no_address_is_refused_by_name(tmp_path: Path) -> None:
    spec = make_build(GOLDENS / "minicpm-v", "fp16", tmp_path, LIMITS).spec
    narrow = replace(spec, decoder=replace(spec.decoder, kv_heads=1, head_dim=8))
    with pytest.raises(UnsupportedModelError, match=r"a cache of 104 positions .* multiple of 16 "):
        TensorrtBackend().refuse(narrow, BuildOptions(TARGET, "fp16", Limits(104, 8, batch=2)))
    for limits in (Limits(112, 8, batch=2), Limits(104, 8)):
        TensorrtBackend().refuse(narrow, BuildOptions(TARGET, "fp16", limits))


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_tensorrt_builds_the_decoder_of_several_sequences(precision: str, made: Made, tmp_path: Path) -> None:
    one, _, _ = made(precision)
    result = one.engine(DECODER, tmp_path)
    assert result["attention_layers"] == one.build.spec.decoder.layers
    assert (tmp_path / f"{DECODER}.engine").stat().st_size == result["bytes"] > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int4"])
@pytest.mark.parametrize("name", CASES)
def test_prompts_of_every_family_go_on_together(name: str, precision: str, tmp_path: Path) -> None:
    one = traced(GOLDENS / name, precision, tmp_path, WHOLE)
    ours, reference = OrtBackedTrt(one, tmp_path), one.reference()
    case, processor = read_case(GOLDENS / name), one.build.processor
    asked = [question(case, prefix, processor) for prefix in case.prefixes]
    limits = SessionLimits(WHOLE.context, WHOLE.prefill_chunk)
    assert ours.why_not_batched(3) == ""
    rows = ours.start_batch(3, WHOLE.context)
    sessions = [Session(ours, processor, limits, reserved=row) for row in rows]  # type: ignore[arg-type]
    twins = [Session(reference, processor, limits) for _ in rows]
    for number, pair in enumerate(zip(sessions, twins, strict=True)):
        one_asked = asked[number % len(asked)]
        images = processor.images(one_asked.pictures) if one_asked.pictures else []
        layout = processor.layout(one_asked.input_ids, images)
        for session in pair:
            session.prefill(session.merge(layout, session.features(images)), layout)
            for token in range(number):  # as long as none of the others
                session.step(token)
    engine(ours).sequences.clear()
    for seed, who in enumerate(ROUNDS):
        tokens = [3 + seed + number for number in who]
        made = step_batch([sessions[number] for number in who], tokens)
        for number, token, logits in zip(who, tokens, made, strict=True):
            expected = twins[number].step(token)
            assert np.abs(logits - expected).max() < RELATIVE * np.abs(expected).max(), (who, number)
    # an expert is chosen by the conversation, so that those of different pictures have no call in common
    assert (max(engine(ours).sequences) > 1) is not (name in CHOOSING)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int4"])
@pytest.mark.parametrize("name", families())
def test_the_decoder_of_every_family_is_built_for_several(name: str, precision: str, tmp_path: Path) -> None:
    folder = synthesize(SynthesisRequest(name, "tiny", tmp_path / "checkpoint", "", "float32")).folder
    one = traced(folder, precision, tmp_path, stages=(DECODER,))
    TensorrtBackend().refuse(one.build.spec, one.build.options)
    assert one.engine(DECODER, tmp_path)["bytes"] > 100_000
