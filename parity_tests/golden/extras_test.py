"""Arrays beyond the common probes: every one of every golden is looked at on the reference, and a wrong one is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from parity_tests.backends.examiner import NotShown
from parity_tests.backends.registry import OF_THE_REFERENCE
from parity_tests.check.candidate import Candidate
from parity_tests.conftest import GOLDENS
from parity_tests.golden.case import GoldenCase, classify, question, read_case
from parity_tests.golden.extras import extra_array
from parity_tests.golden.inside import AskedOnce, inside
from parity_tests.golden.routing import chosen_weights, gate_input
from parity_tests.judging.metrics import Kind
from parity_tests.reference.checkpoint_side import Checkpoint, open_checkpoint, reference
from runtime_py.contracts import CONNECTOR, DECODER
from runtime_py.generation.session import Limits

CASES = ("omnilmm-12b", "wemm", "xverse-v", "awaker2.5-vl", "cogvlm2", "cogvlm2-video")


def reference_side(checkpoint: Checkpoint) -> Candidate:
    manifest = {"runtime": checkpoint.spec.runtime, "family": checkpoint.spec.family, "backends": {}}
    backend = reference(checkpoint.spec, checkpoint.weights)
    return Candidate(Path(), manifest, OF_THE_REFERENCE, backend, checkpoint.processor(), None, Limits(4096, 4096))


@pytest.fixture(scope="module", params=CASES)
def opened(request: pytest.FixtureRequest) -> tuple[GoldenCase, Checkpoint, Candidate]:
    checkpoint = open_checkpoint(GOLDENS / request.param)
    return read_case(GOLDENS / request.param), checkpoint, reference_side(checkpoint)


def test_every_array_of_the_case_is_looked_at_and_agrees(opened: tuple[GoldenCase, Checkpoint, Candidate]) -> None:
    case, checkpoint, side = opened
    arrays = [array for array in (classify(case, name) for name in case.outputs) if not array.probe]
    compared = 0
    for array in arrays:
        asked = question(case, array.prefix, side.processor)
        try:
            extra = extra_array(case, array, side, checkpoint, asked)
        except NotShown as error:
            assert "gives no output of block" in str(error)  # read off a package's graph, not off the reference
            continue
        assert extra is not None, array.name
        expected = case.outputs[array.name]
        distance = np.abs(extra.values.reshape(expected.shape).astype(np.float64) - expected).max()
        assert distance <= (0 if extra.kind in (Kind.EXACT, Kind.TOKENS) else 2e-4), array.name
        compared += 1
    assert compared >= len(arrays) - 1


def test_another_expert_or_weight_is_seen() -> None:
    """The gates follow the gate's input: that of decode chooses other experts than that of prefill."""
    case, checkpoint = read_case(GOLDENS / "awaker2.5-vl"), open_checkpoint(GOLDENS / "awaker2.5-vl")
    side = reference_side(checkpoint)
    once = AskedOnce(side, question(case, "p0_", side.processor))
    prefill, decode = (chosen_weights(once, gate_input(once, phase), checkpoint) for phase in ("prefill", "decode"))
    np.testing.assert_allclose(prefill, case.outputs["p0_gates_prefill"].astype(np.float32), atol=1e-6)
    assert not np.array_equal(prefill.argmax(-1), decode.argmax(-1))
    assert np.abs(prefill - case.outputs["p0_gates_decode"]).max() > 0.1


def test_values_inside_a_stage_are_named_by_path() -> None:
    case, checkpoint = read_case(GOLDENS / "cogvlm2"), open_checkpoint(GOLDENS / "cogvlm2")
    side = reference_side(checkpoint)
    once = AskedOnce(side, question(case, "", side.processor))
    (inputs,) = once.stage_calls(CONNECTOR)
    values = inside(side, CONNECTOR, inputs, ["conv.input", "conv", "norm"])
    assert values["conv.input"].shape == (1, 16, 96)
    assert values["conv"].shape == (1, 16, 24)
    (decoder,) = once.stage_calls(DECODER)
    assert inside(side, DECODER, decoder, ["present.1.value"])["present.1.value"].shape == (1, 2, 40, 12)
    with pytest.raises(NotShown, match="no module nothing"):
        inside(side, CONNECTOR, inputs, ["nothing"])
