"""Own pictures and questions through a real check, and what a demo is asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.demo.reference import recipe_of
from export.source.hub import DEMO_FOLDER
from parity_tests.check import own_questions
from parity_tests.check.answers import similarity
from parity_tests.check.own_questions import batches, read_data
from parity_tests.check.prompts import demo_prompts
from parity_tests.cli import main
from parity_tests.conftest import GOLDENS, ExportedPackage
from parity_tests.judging.probes import Question, Recording
from parity_tests.reference.checkpoint_side import open_checkpoint
from runtime_py import tokenizer
from runtime_py.errors import UsageError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = []
    for number, size in enumerate(((90, 60), (50, 120), (64, 64))):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (*size, 3), np.uint8)).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": "ab?", "answers": ["no such words"] if number else []})
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def test_own_samples_are_judged_scored_and_shown(exported: ExportedPackage, data: Path, tmp_path: Path):
    package, out = exported("minicpm-v", "cpu", "int4"), tmp_path / "report"
    flags = ["--reference", str(GOLDENS / "minicpm-v"), "--steps", "3", "--inside", "never", "--report-dir", str(out)]
    assert main(["--package", str(package), *flags, "--data", str(data), "--samples", "2"]) == 0
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert [answer["question"] for answer in report["answers"]] == ["line 1", "line 2"]
    assert report["answers"][0]["candidate_scores"] == {}
    assert set(report["answers"][1]["candidate_scores"]) == {"exact", "contains", "anls"}
    assert report["answers"][1]["truth"] == ["no such words"]
    assert {"answers: exact", "full precision: answers: exact"} <= set(report["accuracy"])
    assert report["accuracy"]["answers: questions with a truth"] == 1
    assert {c["question"] for c in report["comparisons"]} == {"line 1", "line 2"}
    assert all(c["seconds"] > 0 for c in report["comparisons"])
    assert {"what": "1 of 3 own samples", "why": "more than --samples"} in report["not_run"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Right: no such words." in page
    assert "of 1 own questions" in page
    assert "not measured: run with --task" not in page


def test_batches_of_one_give_the_same_figures(
    exported: ExportedPackage, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def figures() -> list[object]:
        out = tmp_path / "run"
        flags = ["--reference", str(GOLDENS / "minicpm-v"), "--steps", "2", "--inside", "never", "--report-dir", str(out)]
        assert main(["--package", str(exported("minicpm-v", "cpu", "int4")), *flags, "--data", str(data)]) == 0
        run = json.loads((out / "run.json").read_text(encoding="utf-8"))
        return [[m["metrics"] for m in c["measurements"]] for c in run["comparisons"]]

    together = figures()
    monkeypatch.setattr(own_questions, "BATCH_BYTES", 1)
    assert figures() == together


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": "0.png", "question": "a" * 5000}, "positions"),
        ({"messages": [{"role": "assistant", "content": "Hello"}]}, "asks nothing"),
        ({"messages": [{"role": "system", "content": "Hello"}]}, "asks nothing"),
    ],
)
def test_a_sample_that_the_model_cannot_take_is_named(
    exported: ExportedPackage, data: Path, capsys: pytest.CaptureFixture[str], row: object, said: str
):
    (data / "questions.jsonl").write_text("\n" + json.dumps(row), encoding="utf-8")
    package = exported("minicpm-v", "cpu", "int4")
    assert main(["--package", str(package), "--reference", str(GOLDENS / "minicpm-v"), "--data", str(data)]) == 2
    error = capsys.readouterr().err
    assert "questions.jsonl, line 2: " in error
    assert said in error


def test_what_lies_behind_the_stop_token_is_not_counted():
    rng = np.random.default_rng(0)
    prompt, steps = rng.normal(size=(1, 6, 9)), rng.normal(size=(1, 4, 9))
    ids = np.array([[3, 8, 1, 2]])
    other, wrong = steps.copy(), np.array([[3, 8, 7, 7]])
    other[0, 2:] *= -1
    one = Recording("q", arrays={"prefill_logits": prompt, "step_logits": steps, "greedy_ids": ids})
    two = Recording("q", arrays={"prefill_logits": prompt, "step_logits": other, "greedy_ids": wrong})
    whole, stopped = similarity("q", one, two), similarity("q", one, two, [8])
    assert whole is not None
    assert stopped is not None
    assert (whole.equal_tokens, whole.tokens, stopped.equal_tokens, stopped.tokens) == (2, 4, 2, 2)
    assert whole.kl_mean > 0.1
    assert stopped.kl_mean == pytest.approx(0, abs=1e-9)


def test_a_count_of_samples_below_one_is_refused(data: Path):
    with pytest.raises(UsageError, match="--samples 0"):
        read_data(data, 0)
    assert (read_data(data, 2).total, len(read_data(data, 2).samples)) == (3, 2)


def test_batches_keep_order_and_hold_at_least_one(monkeypatch: pytest.MonkeyPatch):
    asked = [Question(str(number), (), np.zeros((1, 1), np.int64), positions=10) for number in range(5)]
    assert [len(batch) for batch in batches(asked, 1000, 2)] == [5]
    monkeypatch.setattr(own_questions, "BATCH_BYTES", 2 * 4 * 4 * 1000 * 16)
    assert [[q.name for q in batch] for batch in batches(asked, 1000, 2)] == [["0", "1"], ["2", "3"], ["4"]]


def test_the_last_of_them_crosses_the_border_between_two_calls(data: Path):
    folder = DEMO_FOLDER / "minicpm-v"
    processor = open_checkpoint(folder).processor(tokenizer.load(folder))
    asked = own_questions.own_questions(read_data(data), processor, 2048, 4)
    assert [question.calls for question in asked] == [1, 1, 2]


@pytest.mark.parametrize("family", ["wemm", "xverse-v"])
def test_rows_of_a_picture_count_where_its_ids_are_one_placeholder(family: str, monkeypatch: pytest.MonkeyPatch):
    folder = DEMO_FOLDER / family
    processor = open_checkpoint(folder).processor(tokenizer.load(folder))
    question = demo_prompts(recipe_of(family))[0].question(processor)
    (image,) = processor.images(question.pictures)
    text = question.input_ids.shape[1] - 1
    assert question.positions == text + image.rows > text + 1
    monkeypatch.setattr(own_questions, "BATCH_BYTES", 2 * 4 * own_questions.SIDES * 1000 * (text + 1))
    assert [len(batch) for batch in batches([question] * 2, 1000, 0)] == [1, 1]


def test_a_demo_is_asked_what_has_one_right_answer():
    wide, tall, text = demo_prompts(recipe_of("minicpm-v"))
    assert wide.pictures[0].shape[1] > wide.pictures[0].shape[0]
    assert tall.pictures[0].shape[0] > tall.pictures[0].shape[1]
    assert all(prompt.truth and prompt.truth[0] for prompt in (wide, tall, text))
    assert not text.pictures
    again = demo_prompts(recipe_of("minicpm-v"))[0]
    assert np.array_equal(again.pictures[0], wide.pictures[0])
    assert again.messages == wide.messages
