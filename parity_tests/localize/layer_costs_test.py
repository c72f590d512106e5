"""Costs of quantised layers, and errors inside stages, on a real int4 package."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from parity_tests.check.candidate import open_candidate
from parity_tests.check.package_check import CheckOptions, check
from parity_tests.check.package_questions import questions, stand_in
from parity_tests.conftest import GOLDENS, ExportedPackage
from parity_tests.judging.run_details import Details
from parity_tests.localize.layer_costs import layer_costs
from parity_tests.reference.checkpoint_side import open_checkpoint, reference, stored_reference
from parity_tests.reference.reference import TorchBackend

WORST = "decoder.layers.1.mlp.down"


class OneLayerWorse:
    """A WeightProvider that gives one layer at three quarters of its size."""

    def __init__(self, weights: Any, layer: str) -> None:
        self.weights, self.target = weights, f"{layer}.weight"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.weights, name)

    def tensor(self, target: str) -> Any:
        value = self.weights.tensor(target)
        return value * 0.75 if target == self.target else value


def weight(side: TorchBackend, layer: str) -> Tensor:
    """A decoder layer's weight in a reference."""
    value = side.stage("decoder").get_submodule(layer).weight
    assert isinstance(value, Tensor)
    return value


def test_a_layer_that_was_made_worse_costs_more_and_the_model_is_left_as_it_was(exported: ExportedPackage):
    checkpoint = open_checkpoint(GOLDENS / "minicpm-v")
    candidate = open_candidate(exported("minicpm-v", "cpu", "int4"))
    processor = checkpoint.processor(stand_in(candidate.manifest))
    full, stored = reference(checkpoint.spec, checkpoint.weights), stored_reference(checkpoint, candidate)
    assert stored is not None
    asked = questions(processor, 2, candidate.limits.context, 2)
    before = weight(full, "layers.1.mlp.down").clone()
    context = candidate.limits.context
    plain = {cost.layer: cost for cost in layer_costs(full, stored, candidate.assignments(), processor, asked, context)[0]}
    stored.weights = OneLayerWorse(stored.weights, WORST)
    costs, note = layer_costs(full, stored, candidate.assignments(), processor, asked, context)
    quantised = {name for name, row in candidate.assignments().items() if row["grid"]}
    assert {cost.layer for cost in costs} == quantised
    assert note == ""
    kl = {cost.layer: cost.kl for cost in costs if cost.kl is not None}
    assert kl.keys() == quantised
    assert min(kl.values()) >= 0
    by_layer = {cost.layer: cost for cost in costs}
    assert by_layer[WORST].error == pytest.approx(0.25, abs=0.05)
    assert max(costs, key=lambda cost: cost.error).layer == WORST
    assert {name for name in plain if plain[name] != by_layer[name]} == {WORST}
    was = plain[WORST].kl
    assert was is not None
    assert kl[WORST] > 2 * was > 0
    order = [kl[cost.layer] for cost in Details(layers=costs).costly()]
    assert order == sorted(order, reverse=True)
    assert weight(full, "layers.1.mlp.down").equal(before)


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_passing_package_has_errors_of_every_stage_and_both_answers(exported: ExportedPackage, precision: str):
    result = check(exported("minicpm-v", "cpu", precision), GOLDENS / "minicpm-v", CheckOptions(steps=2, details=True))
    assert result.verdict == "pass"
    details = result.judgement.run.details
    stages = ["vision_encoder", "connector", "embed_tokens", "decoder"]
    for name, most in (("package" if precision == "fp32" else "implementation", 1e-4), ("loss", 0.9)):
        rows = [row for row in details.stages if row.comparison == name]
        if name == "loss" and precision == "fp32":
            assert rows == []
            continue
        assert [row.stage for row in rows] == stages
        assert all(0 <= row.error < most for row in rows)
        assert [block for block, _ in rows[-1].blocks if block.startswith("layers.") and block[7:].isdecimal()] == [
            "layers.0",
            "layers.1",
        ]
    assert [answer.question for answer in details.answers] == ["wide", "tall", "text"]
    assert [bool(answer.picture) for answer in details.answers] == [True, True, False]
    assert bool(details.layers) == (precision == "int4")
    assert all(row.tokens == 2 for row in details.similarity)


def test_nothing_inside_is_measured_when_it_is_not_wanted(exported: ExportedPackage):
    package = exported("minicpm-v", "cpu", "int4")
    details = check(package, GOLDENS / "minicpm-v", CheckOptions(steps=2, details=True, inside=False)).judgement.run.details
    assert (details.stages, details.layers) == ((), ())
    assert "--inside never" in details.unmeasured
    assert len(details.answers) == 3
