"""Towers whose rounding breaks a limit are held to one that rounds alike, and to nothing less."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from parity_tests.backends.onnx import OnnxExaminer
from parity_tests.check.candidate import open_candidate
from parity_tests.check.rounded_tower import ROUNDED, Twin, held_to_twin
from parity_tests.check.sides import STORED
from parity_tests.conftest import GOLDENS, ExportedPackage
from parity_tests.golden.case import question, read_case
from parity_tests.judging.compare import compare_recordings
from parity_tests.judging.judge import all_hold
from parity_tests.judging.probes import record
from parity_tests.judging.results import Comparison
from parity_tests.judging.standards import Limit, Standard
from parity_tests.reference.checkpoint_side import open_checkpoint, stored_reference
from parity_tests.thresholds import DEFAULT, Kind
from runtime_py.contracts import CONNECTOR, VISION
from runtime_py.generation.session import Limits


@pytest.mark.parametrize("alike", [True, False])
def test_what_breaks_a_limit_is_held_to_a_tower_that_rounds_alike(
    exported: ExportedPackage, monkeypatch: pytest.MonkeyPatch, alike: bool
) -> None:
    case = read_case(GOLDENS / "minicpm-v")
    candidate, checkpoint = open_candidate(exported("minicpm-v", "cpu", "int4")), open_checkpoint(case.folder)
    try:
        stored = stored_reference(checkpoint, candidate)
        assert stored is not None
        limits = Limits(candidate.limits.context, candidate.limits.context)
        asked = question(case, case.prefixes[0], candidate.processor)
        say = partial(record, processor=candidate.processor, limits=limits, question=asked, steps=1)
        said = say(candidate.backend)
        rows = compare_recordings(say(stored), said)
        kernels = Comparison("kernels", Standard.KERNELS_INT8, STORED, candidate.name, rows)
        # no tower that rounds keeps a limit of nothing
        nothing = (Limit("relative_max", 0.0, "none"),)
        table = {**DEFAULT, Standard.KERNELS_INT8: {**DEFAULT[Standard.KERNELS_INT8], Kind.FEATURES: nothing}}
        twin = Twin(checkpoint, candidate, say, table)
        if not alike:
            told = candidate.examiner.tower_arithmetic(candidate)
            assert told is not None
            coarse = replace(told, inputs=dict.fromkeys(told.inputs, lambda x: torch.round(x * 2) / 2))
            monkeypatch.setattr(OnnxExaminer, "tower_arithmetic", lambda *_: coarse)
        rest, held = held_to_twin(kernels, said, twin)
        assert {row.stage for row in held.measurements} == {VISION, CONNECTOR}
        assert (held.standard, held.baseline) == (Standard.STORED_INT8, ROUNDED)
        assert {row.probe for row in rest.measurements} | {row.probe for row in held.measurements} == {
            row.probe for row in rows
        }
        assert all_hold(held, checkpoint.spec.family) is alike
        assert held_to_twin(kernels, said, replace(twin, table=None)) == [kernels]
    finally:
        candidate.backend.close()
