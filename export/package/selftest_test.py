"""The sample's answer: the reference's up to its stop token, and only where a check of this question passed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.package.sample_questions import PROMPTS
from export.package.selftest import write_answer, write_question
from runtime_py.package.selftest import read_sample

STOPS = (2, 9)


def passed(ids: list[int], **changes: Any) -> dict[str, Any]:
    return {"verdict": "pass", "sample": {"question": PROMPTS[0][0], "greedy_ids": ids}, **changes}


def begun(folder: Path) -> Path:
    write_question(folder)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.mark.parametrize(("ids", "expected"), [([5, 6, 7], (5, 6, 7)), ([5, 6, 9, 7, 2], (5, 6)), ([5, 2, 9], (5,))])
def test_the_answer_ends_before_the_first_stop_token(tmp_path: Path, ids: list[int], expected: tuple[int, ...]) -> None:
    seen: list[tuple[int, ...]] = []

    def equal() -> int:
        sample = read_sample(tmp_path)
        assert sample is not None and sample.agree == 0, "nothing is promised before the package was asked"
        seen.append(sample.expected_ids)
        return 1

    written = write_answer(begun(tmp_path), passed(ids), STOPS, equal)
    sample = read_sample(tmp_path)
    assert sample is not None
    assert (sample.expected_ids, sample.agree, sample.prompt) == (expected, 1, PROMPTS[0][2])
    assert seen == [expected]
    assert all((tmp_path / path).is_file() for path in written) and len(written) == 2


@pytest.mark.parametrize(
    "verification",
    [
        passed([5], verdict="fail"),
        passed([5], verdict="not run"),
        passed([5], sample={"question": "another", "greedy_ids": [5]}),
        passed([5], sample={}),
        {"verdict": "pass"},
        passed([]),
        passed([9, 5]),
    ],
)
def test_without_a_passed_check_of_the_question_there_is_no_answer(tmp_path: Path, verification: dict[str, Any]) -> None:
    assert write_answer(begun(tmp_path), verification, STOPS, pytest.fail) == []
    sample = read_sample(tmp_path)
    assert sample is not None and sample.expected_ids == ()


def test_without_a_tokenizer_there_is_no_answer(tmp_path: Path) -> None:
    (begun(tmp_path) / "tokenizer.json").unlink()
    assert write_answer(tmp_path, passed([5]), STOPS, pytest.fail) == []
