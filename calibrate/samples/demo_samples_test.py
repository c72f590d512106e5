"""A demo's own samples: by seed and number, of every kind it has learnt, answers cut as it says them."""

from pathlib import Path

import numpy as np
import pytest

from calibrate.evaluation.evaluate import DemoEvaluation, demo_recipe
from calibrate.request import CalibrationRequest
from calibrate.run import plan
from calibrate.samples import prompts
from calibrate.samples.demo_samples import answer_cutter, own_samples
from calibrate.samples.prompts import processor_of, prompts_of, sample_set_of
from export.demo.questions import ask
from export.demo.reference import recipe_of
from runtime_py.errors import UsageError


def request(model: str, **changes: object) -> CalibrationRequest:
    given: dict[str, object] = {"weights": "demo", "precision": "int4", "samples": 7, **changes}
    return CalibrationRequest(model, "cpu", "gptq", Path("unused"), **given)  # type: ignore[arg-type]


def test_a_sample_depends_on_seed_and_number_alone() -> None:
    recipe = recipe_of("minicpm-v")
    few, many, other = (list(own_samples(recipe, count, seed)) for count, seed in ((2, 3), (5, 3), (2, 4)))
    for one, same, different in zip(few, many, other, strict=False):
        assert one.messages == same.messages
        assert np.array_equal(one.pictures[0], same.pictures[0])
        assert not np.array_equal(one.pictures[0], different.pictures[0])


def test_text_only_keeps_the_words() -> None:
    recipe = recipe_of("wemm")
    for shown, told in zip(own_samples(recipe, 9, 0), own_samples(recipe, 9, 0, text_only=True), strict=True):
        assert [message.text for message in told.messages] == [message.text for message in shown.messages]
        assert not told.pictures
        assert not any(message.images for message in told.messages)


@pytest.mark.parametrize(("family", "digits"), [("minicpm-v", True), ("xverse-v", False)])
def test_only_what_was_learnt_is_asked(family: str, digits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = []

    def noted(scene, kind, language, rng):
        question = ask(scene, kind, language, rng)
        kinds.extend([(kind, language)] if question else [])
        return question

    monkeypatch.setattr("export.demo.questions.ask", noted)
    assert len(list(own_samples(recipe_of(family), 42, 0))) == 42
    assert ("digit" in {kind for kind, _ in kinds}) == digits
    assert {language for _, language in kinds} == {"en", "zh"}


@pytest.mark.parametrize("family", ["cogvlm2", "omnilmm-12b", "minicpm-v"])
def test_answers_are_cut_as_the_demo_says_them(family: str) -> None:
    """What the checkpoint itself decodes to the answer is what a sample feeds."""
    asked = request(family)
    checkpoint = plan(asked).checkpoint
    recipe = demo_recipe(checkpoint)
    processor, tokenizer = processor_of(checkpoint)
    cut = answer_cutter(recipe, processor, tokenizer)
    _, prompts = prompts_of(asked, checkpoint)
    evaluation = DemoEvaluation(checkpoint, 1)
    for sample, prompt in zip(own_samples(recipe, 7, 0), prompts, strict=True):
        said = cut(sample.messages[1].text)
        assert prompt.layout.input_ids[0, -prompt.answer :].tolist() == said
        question, answer = (message.text for message in sample.messages)
        decoded = evaluation.reference.answer(sample.pictures[0], question).strip()
        if decoded == answer:
            assert tokenizer.decode(said).strip() == answer


def test_demos_get_their_own_samples_and_others_what_lies_on_the_machine(
    other_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = request("minicpm-v")
    checkpoint = plan(own).checkpoint
    assert sample_set_of(own, checkpoint) == "demo"
    general = request("minicpm-v", sample_set="general")
    assert sample_set_of(general, checkpoint) == "general"
    first, second = (prompts_of(asked, checkpoint)[1][0].layout.input_ids for asked in (own, general))
    assert first.shape != second.shape or (first != second).any()
    other = request("minicpm-v", weights=str(other_checkpoint))
    assert sample_set_of(other, plan(other).checkpoint) == "machine"
    monkeypatch.setattr(prompts, "passages", tuple)
    assert sample_set_of(other, plan(other).checkpoint) == "general", "where there are too few texts"
    asked = request("minicpm-v", weights=str(other_checkpoint), sample_set="demo")
    with pytest.raises(UsageError, match="demo"):
        prompts_of(asked, plan(asked).checkpoint)


@pytest.mark.parametrize(("changes", "what"), [({"sample_set": "mine"}, "--sample-set mine"), ({}, "both")])
def test_a_wrong_sample_set_is_one_clear_error(changes: dict[str, object], what: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=what):
        request("minicpm-v", **(changes or {"sample_set": "demo", "data": tmp_path}))
