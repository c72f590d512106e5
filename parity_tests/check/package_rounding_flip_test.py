"""A package whose gate stands on the other side of a float16 boundary passes its check and says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from parity_tests.check.package_check import CheckOptions, check
from parity_tests.check.package_questions import questions, stand_in
from parity_tests.check.stored_numbers import NAME
from parity_tests.conftest import GOLDENS
from parity_tests.golden.golden import export_case
from parity_tests.golden.inside import AskedOnce
from parity_tests.golden.rounding_flip import MOVED
from parity_tests.golden.rounding_flip_test import AWAKER, gate_at_boundary, side_of
from parity_tests.golden.routing import gate_input
from parity_tests.judging.standards import Standard
from parity_tests.reference.checkpoint_side import open_checkpoint
from parity_tests.report.html_report import html
from runtime_py import package as packages

STEPS = 2

GATE, RAISED = (0, "mlp"), 20.0
"""A gate whose winner has 0.87 for the first question; its logits near 21 lie 0.016 apart in float16."""


def gate_of_the_first_question(package: Path) -> torch.Tensor:
    """What the gates read when the check asks its first question."""
    checkpoint, manifest = open_checkpoint(AWAKER), packages.read(package).manifest
    side = side_of(checkpoint)
    processor = checkpoint.processor(stand_in(manifest))
    asked = questions(processor, 1, manifest["limits"]["context"], STEPS)[0]
    return torch.from_numpy(gate_input(AskedOnce(side.with_processor(processor), asked), "prefill"))


@pytest.mark.parametrize(("distance", "excused"), [(1e-5, True), (1e-3, False)])
def test_only_noise_across_a_boundary_is_excused(distance: float, excused: bool, tmp_path: Path):
    given = gate_of_the_first_question(export_case(GOLDENS / "awaker2.5-vl", "cpu", "fp32", tmp_path / "plain"))
    ours = gate_at_boundary(tmp_path / "ours", -distance, given, GATE, RAISED)
    theirs = gate_at_boundary(tmp_path / "theirs", distance, given, GATE, RAISED)
    result = check(export_case(theirs.folder, "cpu", "fp32", tmp_path / "package"), ours.folder, CheckOptions(steps=STEPS))
    failed = {judged.comparison.name for judged in result.judgement.comparisons if judged.first_failure is not None}
    assert NAME in failed, "the weights are other ones, and made the noise"
    assert (failed == {NAME}) == excused, result.first_failure
    standards = {
        judged.comparison.standard for judged in result.judgement.comparisons if MOVED in judged.comparison.question
    }
    assert (Standard.FLIPPED in standards) == excused
    assert ("moved across a rounding boundary" in html(result.judgement)) == excused
