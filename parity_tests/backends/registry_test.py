"""Every backend has an examiner that does what the backend's record says it can."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from parity_tests.backends.examiner import Examiner
from parity_tests.backends.registry import examiner_of, stand_in_for
from parity_tests.check.candidate import open_candidate
from parity_tests.conftest import ExportedPackage
from runtime_py.backends.record import Ability, RuntimeBackend
from runtime_py.backends.records import BUILT_IN, MLC, ONNX, TENSORRT
from runtime_py.contracts import EMBED


@pytest.mark.parametrize("record", BUILT_IN, ids=lambda record: record.name)
def test_an_examiner_does_what_its_record_says(record: RuntimeBackend) -> None:
    kind = type(examiner_of(record))
    assert (kind.open_in_pieces is not Examiner.open_in_pieces) == record.can(Ability.IN_PIECES)
    assert (kind.peak is not Examiner.peak) == record.can(Ability.IN_PIECES)
    assert (kind.exact is not Examiner.exact) == record.can(Ability.EXACT_COPY)
    assert kind.shows_values == (kind.stage_view is not Examiner.stage_view)


def test_only_a_backend_that_needs_a_device_has_a_stand_in() -> None:
    assert stand_in_for(TENSORRT, [TENSORRT, ONNX]) is ONNX
    assert stand_in_for(TENSORRT, [TENSORRT]) is None
    assert stand_in_for(MLC, [MLC, ONNX]) is None


@pytest.mark.parametrize(("target", "precision"), [("cpu", "fp32"), ("android", "int4")])
def test_several_sequences_at_a_time_do_not_see_each_other(exported: ExportedPackage, target: str, precision: str) -> None:
    side = open_candidate(exported("minicpm-v", target, precision))
    record = side.examiner.record
    assert record is not None and record.can(Ability.SEVERAL_SEQUENCES)
    prompts = [np.arange(5, 15)[None], np.arange(40, 46)[None]]

    def fed(state: Any, ids: np.ndarray) -> np.ndarray:
        embeds = side.backend.run(EMBED, {"input_ids": ids})["inputs_embeds"]
        positions = np.arange(state.length, state.length + ids.shape[1])[None]
        return side.backend.forward(state, {"inputs_embeds": embeds, "position_ids": positions}, np.array([-1]))

    try:
        apart = []
        for prompt in prompts:
            state = side.backend.start(64)
            apart.append([fed(state, prompt), fed(state, prompt[:, :1])])
        states = [side.backend.start(64) for _ in prompts]
        together = [[fed(state, prompt)] for state, prompt in zip(states, prompts, strict=True)]
        for actual, state, prompt in zip(together, states, prompts, strict=True):
            actual.append(fed(state, prompt[:, :1]))
        np.testing.assert_array_equal(together, apart)
    finally:
        side.backend.close()
