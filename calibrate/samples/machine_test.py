"""Samples from what is installed: real texts as answers, photographs where packages carry some, equal ones each time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibrate.samples import machine
from calibrate.samples.machine import PHOTOGRAPHS, PICTURE_EVERY, machine_samples, passages, photographs, shortened
from calibrate.samples.prompts import processor_of
from export.checkpoint.opened import open_folder
from export.source.hub import DEMO_FOLDER


class Letters:
    """A token a letter."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def token_id(self, token: str) -> int | None:
        return None


def test_texts_of_this_machine_are_many_real_and_different() -> None:
    told = passages()
    assert len(told) >= machine.ENOUGH
    assert len({passage.text for passage in told}) == len(told)
    assert all(machine.LEAST <= len(passage.text) <= machine.LONGEST for passage in told)
    kinds = {passage.question.split()[0] for passage in told}
    assert {"What", "Explain"} <= kinds, "descriptions, licences and docstrings"
    assert any("numpy" in passage.question for passage in told)


def test_samples_depend_on_the_seed_and_answers_have_a_bound() -> None:
    one, same, other = (list(machine_samples(7, seed, Letters(), 50)) for seed in (0, 0, 1))
    assert [sample.messages for sample in one] == [sample.messages for sample in same]
    assert [sample.messages for sample in one] != [sample.messages for sample in other]
    texts = [sample for sample in one if not sample.pictures]
    assert len(texts) == 4 and len(one) - len(texts) == -(-7 // PICTURE_EVERY)
    assert one[0].pictures, "the first is one with a picture, whatever the count"
    assert all(0 < len(sample.messages[-1].text) <= 50 for sample in texts)
    assert all(not sample.pictures for sample in machine_samples(7, 0, Letters(), 50, text_only=True))


def test_a_text_is_cut_by_its_tokens() -> None:
    assert shortened("abcdef", 4, Letters().encode) == "abcd"
    assert shortened("abc", 4, Letters().encode) == "abc"
    # a tokenizer that needs two tokens for every letter but the first
    assert shortened("abcdef", 4, lambda text: [0] * max(1, 2 * len(text) - 1)) == "ab"


def test_photographs_of_installed_packages_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictured-1.0.dist-info").mkdir()
    (tmp_path / "pictured-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: pictured\nVersion: 1.0\n")
    file = tmp_path / PHOTOGRAPHS[0]
    file.parent.mkdir(parents=True)
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(file)
    before = photographs()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert file in photographs() and len(photographs()) >= len(before)
    monkeypatch.setattr(machine, "photographs", lambda: [file])
    pictured = [sample for sample in machine_samples(6, 0, Letters(), 50) if sample.pictures]
    assert pictured[0].pictures[0].shape == (20, 30, 3) and pictured[0].name == file.name
    assert pictured[1].name == "", "drawn ones follow"


def test_a_model_reads_them() -> None:
    checkpoint = open_folder(DEMO_FOLDER / "wemm")
    processor, words = processor_of(checkpoint)
    samples = list(machine_samples(3, 0, words, 40))
    from calibrate.samples.data import prepare

    prompts = list(prepare(samples, processor, words))
    assert [bool(prompt.images) for prompt in prompts] == [True, False, False]
    assert all(1 <= prompt.answer <= 42 for prompt in prompts[1:])
