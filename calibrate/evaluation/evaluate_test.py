"""Scores: one pass says what decoding says, and the same whether questions run together or alone."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from calibrate.conftest import run_decoder
from calibrate.evaluation.evaluate import CHECKED, REPORTED, SEARCHED, DemoEvaluation, demo_recipe, is_demo
from calibrate.evaluation.evaluate_samples import on_samples
from calibrate.request import CalibrationRequest
from calibrate.run import CalibrationPlan, plan
from calibrate.samples.data import built_in
from calibrate.statistics.capture import answer_logits
from export.demo.accuracy import HELD_OUT_SEED, Case, score
from export.demo.questions import TASKS
from export.quantisation.codes import DequantisedWeights, RoundToNearest
from export.quantisation.grids import GRIDS

FAMILIES = ("awaker2.5-vl", "cogvlm2", "minicpm-v", "omnilmm-12b", "wemm", "xverse-v")


def planned(family: str) -> CalibrationPlan:
    return plan(
        CalibrationRequest(family, "cpu", "mse-clip", Path("unused"), weights="demo", precision="int4", block_size=128)
    )


def rounded(made: CalibrationPlan) -> DequantisedWeights:
    weights, assignments = made.checkpoint.weights, made.assignments["onnx"]
    assert weights is not None
    return DequantisedWeights(weights, RoundToNearest(weights, assignments, GRIDS), assignments, GRIDS)


def in_task(cases: Sequence[Case]) -> list[int]:
    return [number for number, case in enumerate(cases) if case.question.kind in TASKS]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pass_over_fed_answers_says_what_decoding_says(family: str) -> None:
    """Question by question, with weights in four bits, of which some answers are wrong."""
    made = planned(family)
    evaluation = DemoEvaluation(made.checkpoint, 12)
    weights = rounded(made)
    figures = evaluation.score(weights)
    right = evaluation._run(weights)[1]
    decoded = evaluation.reference.answers([(case.picture, case.question.text) for case in evaluation.cases])
    assert right == [answer.strip() == case.question.answer for answer, case in zip(decoded, evaluation.cases, strict=True)]
    assert figures.accuracy == pytest.approx(score(evaluation.cases, decoded).share())
    kinds = {case.question.kind for case in evaluation.cases}
    assert ("digit" in kinds) == demo_recipe(made.checkpoint).digits, "a family is asked what it has learnt"
    full = evaluation.score(evaluation.weights)
    assert (full.kl, full.agreement) == (0, 1)
    assert figures.kl > 0
    assert 0.95 < figures.cosine < 1


def test_wrong_answers_are_counted() -> None:
    """A decoder whose head has lost its scale's sign answers nothing right."""
    made = planned("minicpm-v")
    evaluation = DemoEvaluation(made.checkpoint, 3)

    class Turned:
        def shape(self, target: str) -> tuple[int, ...]:
            return evaluation.weights.shape(target)

        def tensor(self, target: str) -> torch.Tensor:
            return evaluation.weights.tensor(target) * (-1 if target == "decoder.head.weight" else 1)

        def rows(self, target: str, start: int, stop: int | None) -> torch.Tensor:
            return self.tensor(target)[start:stop]

    score = evaluation.score(Turned())
    assert score.accuracy == 0
    assert score.cosine == pytest.approx(-1, abs=1e-6)
    assert evaluation.score(evaluation.weights).accuracy == 1, "image rows kept from one set of weights serve no other"


def test_image_rows_follow_the_vision_weights() -> None:
    made = planned("minicpm-v")
    evaluation = DemoEvaluation(made.checkpoint, 2)

    class Blind:
        def shape(self, target: str) -> tuple[int, ...]:
            return evaluation.weights.shape(target)

        def tensor(self, target: str) -> torch.Tensor:
            return evaluation.weights.tensor(target) * (0 if target.startswith("vision_encoder.blocks.0") else 1)

        def rows(self, target: str, start: int, stop: int | None) -> torch.Tensor:
            return self.tensor(target)[start:stop]

    assert evaluation.score(Blind()).cosine < 0.999
    assert evaluation.score(evaluation.weights).cosine == pytest.approx(1, abs=1e-12)


def test_pictures_for_choosing_are_not_those_of_the_tables() -> None:
    assert len({REPORTED, SEARCHED, CHECKED, HELD_OUT_SEED, HELD_OUT_SEED + 1}) == 4
    assert REPORTED == HELD_OUT_SEED


def test_a_demo_is_known_by_its_sizes(other_checkpoint: Path) -> None:
    assert all(is_demo(planned(family).checkpoint) for family in FAMILIES)
    other = plan(CalibrationRequest(str(other_checkpoint), "cpu", "mse-clip", Path("unused"), precision="int4"))
    assert not is_demo(other.checkpoint)


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_block_by_block_give_the_logits_of_the_whole_model(family: str) -> None:
    made = planned(family)
    evaluation = on_samples(made.checkpoint, list(built_in(2, 5, side=56)), "some")
    weights, spec = made.checkpoint.weights, made.checkpoint.spec
    assert weights is not None
    streamed = torch.cat([rows[0] for rows in answer_logits(spec, weights, evaluation.prompts, evaluation.processor)])
    assert streamed.shape == (sum(prompt.answer + 1 for prompt in evaluation.prompts), spec.decoder.vocabulary)
    calls = _calls(made, evaluation)
    whole = [run_decoder(spec, weights, call)[0] for call in calls]
    wanted = [rows[-1 - prompt.answer :] for rows, prompt in zip(whole, evaluation.prompts, strict=True)]
    torch.testing.assert_close(streamed, torch.cat(wanted), atol=2e-4, rtol=1e-4)
    assert evaluation.score(weights).kl == 0
    assert evaluation.score(rounded(made)).kl > 0


def _calls(made: CalibrationPlan, evaluation: object) -> list[dict[str, object]]:
    """The decoder's inputs with image rows from the stages held whole."""
    from calibrate.statistics.capture import decoder_calls, tensors
    from export.demo.model import Stages

    weights, spec = made.checkpoint.weights, made.checkpoint.spec
    assert weights is not None
    stages = Stages(spec, weights.rules)
    stages.parameters = {
        stage: {name: weights.tensor(f"{stage}.{name}").float() for name, _ in module.named_parameters()}
        for stage, module in stages.modules.items()
    }
    prompts, processor = evaluation.prompts, evaluation.processor  # type: ignore[attr-defined]
    with torch.no_grad():
        rows = [
            stages.see(tensors(image.vision), tensors(image.connector))[1] for prompt in prompts for image in prompt.images
        ]
    return decoder_calls(spec, weights, prompts, processor, [part.reshape(-1, part.shape[-1]).numpy() for part in rows])
