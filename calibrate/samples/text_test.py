"""Windows of plain text, and what they say of weights: perplexity and distance at every token."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from calibrate.evaluation.evaluate_samples import nats_of, on_text
from calibrate.evaluation.score import HalfWeights
from calibrate.samples.prompts import processor_of
from calibrate.samples.text import text_prompts
from export.checkpoint.opened import open_folder
from export.source.hub import DEMO_FOLDER
from runtime_py.errors import UsageError

TEXT = "What color is the circle? The circle is red. How many squares are there? There are two. " * 6


def test_perplexity_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]]))
    assert nats_of(logits, torch.tensor([0, 2])) == pytest.approx(-(math.log(0.5) + math.log(0.8)))
    assert nats_of(logits, torch.tensor([], dtype=torch.int64)) == 0


def test_windows_cover_the_text_and_tell_every_token_but_their_first(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    checkpoint = open_folder(DEMO_FOLDER / "wemm")
    processor, tokenizer = processor_of(checkpoint)
    ids = tokenizer.encode(TEXT)
    prompts = text_prompts([tmp_path / "a.txt"], 50, processor, tokenizer, window=20)
    assert [prompt.layout.input_ids.shape[1] for prompt in prompts] == [20, 20, 10]
    assert [prompt.answer for prompt in prompts] == [19, 19, 9]
    assert [int(token) for prompt in prompts for token in prompt.layout.input_ids[0]] == ids[:50]
    for files, tokens, words in (
        ([tmp_path / "a.txt"], 10**6, "tokens of text"),
        ([tmp_path / "b.txt"], 9, "cannot be read"),
    ):
        with pytest.raises(UsageError, match=words):
            text_prompts(files, tokens, processor, tokenizer)


def test_full_precision_is_no_distance_from_itself_and_halves_are_little(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    evaluation = on_text(open_folder(DEMO_FOLDER / "wemm"), [tmp_path / "a.txt"], 40)
    full, half = evaluation.score(evaluation.weights), evaluation.score(HalfWeights(evaluation.weights))
    assert (full.kl, full.agreement, full.changed) == (0.0, 1.0, None)
    assert full.perplexity is not None and half.perplexity == pytest.approx(full.perplexity, rel=0.02)
    assert 0 < half.median_kl <= half.p99_kl < 1e-3
    assert evaluation.source == "40 tokens of a.txt"
