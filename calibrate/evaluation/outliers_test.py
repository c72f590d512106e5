"""Outlier channels: nothing changes in full precision, and rounding has a harder time."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from calibrate.command.cli import main
from calibrate.conftest import decoder_call, run_decoder
from calibrate.evaluation.outliers import SHARE, with_outliers
from calibrate.request import CalibrationRequest
from calibrate.run import CalibrationPlan, plan
from export.quantisation.codes import DequantisedWeights, RoundToNearest, WeightProvider
from export.quantisation.grids import GRIDS
from export.quantisation.spec import Assignment
from export.source.hub import DEMO_FOLDER
from runtime_py.errors import ExitCode

SIZE = 16.0


@pytest.fixture(scope="module", params=sorted(path.name for path in DEMO_FOLDER.iterdir()))
def planned(request: pytest.FixtureRequest) -> CalibrationPlan:
    """Each family's demo with int4 layers for a phone."""
    return plan(CalibrationRequest(request.param, "android", "mse-clip", Path("unused"), weights="demo", precision="int4"))


def test_the_function_stays_and_rounding_gets_harder(planned: CalibrationPlan) -> None:
    checkpoint, assignments = planned.checkpoint, planned.assignments["mlc"]
    plain = checkpoint.weights
    changed = with_outliers(checkpoint, SIZE).weights
    assert plain is not None and changed is not None
    call = decoder_call(checkpoint.spec)
    wanted, actual = (run_decoder(checkpoint.spec, weights, call) for weights in (plain, changed))
    assert float((wanted - actual).abs().max()) < 2e-4 * float(wanted.abs().max())
    lost = [
        float((run_decoder(checkpoint.spec, _rounded(weights, assignments), call) - wanted).square().mean())
        for weights in (plain, changed)
    ]
    assert lost[1] > 2 * lost[0]


def test_as_many_channels_as_it_says(planned: CalibrationPlan) -> None:
    changed = with_outliers(planned.checkpoint, SIZE).weights
    plain = planned.checkpoint.weights
    assert plain is not None and changed is not None
    ratio = changed.tensor("decoder.norm.weight").float() / plain.tensor("decoder.norm.weight").float()
    larger = torch.isclose(ratio, torch.tensor(SIZE))
    assert int(larger.sum()) == int(SHARE * len(ratio))
    assert torch.allclose(ratio[~larger], torch.ones(()))
    again = with_outliers(planned.checkpoint, SIZE).weights
    assert again is not None and torch.equal(again.tensor("decoder.head.weight"), changed.tensor("decoder.head.weight"))


def test_a_comparison_says_that_there_are_some(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["compare", "--model", "minicpm-v", "--on", "cpu:32", "--methods", "gptq,awq-gptq", "--json", "-q"]
    asked += ["--pictures", "8", "--samples", "8"]
    comparisons = []
    for more in ([], ["--outliers", "16"]):
        assert main(asked + more) == ExitCode.OK
        comparisons.append(json.loads(capsys.readouterr().out))
    assert [one["outliers"] for one in comparisons] == [0, 16]
    plain, harder = ({row["method"]: row["score"] for row in one["rows"]} for one in comparisons)
    assert harder["fp32"]["answers"] == plain["fp32"]["answers"]
    assert 1 - harder["plain rounding"]["cosine"] > 2 * (1 - plain["plain rounding"]["cosine"])
    assert harder["gptq"]["cosine"] > harder["plain rounding"]["cosine"]
    assert harder["awq-gptq"]["cosine"] > harder["gptq"]["cosine"], "factors do what codes alone cannot"


def test_a_size_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--model", "minicpm-v", "--outliers", "0.5"]) == ExitCode.USAGE
    assert "--outliers 0.5" in capsys.readouterr().err


def _rounded(weights: WeightProvider, assignments: Mapping[str, Assignment]) -> WeightProvider:
    return DequantisedWeights(weights, RoundToNearest(weights, assignments, GRIDS), assignments, GRIDS)
