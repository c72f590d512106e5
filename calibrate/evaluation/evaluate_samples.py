"""Similarity to full precision on samples or text, block by block: any checkpoint, no known answers needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from calibrate.evaluation.evaluate import CHECKED, DemoEvaluation, is_demo
from calibrate.evaluation.score import POSITIONS, Evaluation, Positions, Score, compared
from calibrate.request import CalibrationRequest
from calibrate.samples.data import HELD_OUT_FIRST, Prompt, Sample, built_in, held_out_of_folder, prepare
from calibrate.samples.prompts import processor_of
from calibrate.samples.text import text_prompts
from calibrate.statistics.capture import answer_logits
from export.quantisation.codes import WeightProvider

if TYPE_CHECKING:
    from torch import Tensor

    from export.checkpoint.opened import OpenedCheckpoint
    from export.specs import ModelSpec
    from runtime_py.preprocess.base import Processor

BUILT_IN = "built-in samples"


class SampleEvaluation:
    """Logits at the last token of every prompt and at its answer's, where the sample has one.

    One block's weights and all samples' activations are in memory at a time, then two heads and one sample's logits.
    """

    has_task = False

    def __init__(
        self, spec: ModelSpec, weights: WeightProvider, prompts: Sequence[Prompt], processor: Processor, source: str
    ) -> None:
        self.spec, self.weights, self.prompts, self.processor = spec, weights, prompts, processor
        self.source, self.count = source, len(prompts)

    @cached_property
    def expected(self) -> Iterable[Tensor]:
        """Full-precision logits (1, positions, vocabulary) of each sample."""
        return self._logits(self.weights)

    def score(self, weights: WeightProvider) -> Score:
        """Distance of the weights' logits from full precision, and how well they tell what follows; no accuracy, since
        samples have no right answer.
        """
        apart, nats, told = [], 0.0, 0
        for prompt, wanted, given in zip(self.prompts, self.expected, self._logits(weights), strict=True):
            apart.append(compared(wanted[0], given[0]))
            nats += nats_of(given[0], _following(prompt))
            told += prompt.answer
        return replace(Positions.joined(apart).score(), perplexity=math.exp(nats / told) if told else None)

    def positions(self, weights: WeightProvider) -> Positions:
        """The same distance at every answer position."""
        return Positions.joined(
            compared(wanted[0], given[0]) for wanted, given in zip(self.expected, self._logits(weights), strict=True)
        )

    def _logits(self, weights: WeightProvider) -> Iterable[Tensor]:
        return answer_logits(self.spec, weights, self.prompts, self.processor)


def _following(prompt: Prompt) -> Tensor:
    """int64 (answer,): the tokens that follow the positions at which logits are taken, but for the last position."""
    import torch

    ids = prompt.layout.input_ids[0]
    return torch.tensor([int(token) for token in ids[len(ids) - prompt.answer :]], dtype=torch.int64)


def nats_of(logits: Tensor, following: Tensor) -> float:
    """What the tokens (n,) that follow the first n positions of logits (positions, vocabulary) take together."""
    nats = 0.0
    for rows, ids in zip(logits[: len(following)].split(POSITIONS), following.split(POSITIONS), strict=True):
        nats -= float(rows.double().log_softmax(-1).gather(1, ids[:, None]).sum())
    return nats


def on_text(checkpoint: OpenedCheckpoint, files: Sequence[Path], tokens: int) -> SampleEvaluation:
    """An evaluation on the first ``tokens`` tokens of plain text, at every position.

    Raises:
        UsageError: a file cannot be read as UTF-8, or there is less text than that.
    """
    assert checkpoint.weights is not None
    processor, tokenizer = processor_of(checkpoint)
    prompts = text_prompts(files, tokens, processor, tokenizer)
    name = ", ".join(path.name for path in files)
    return SampleEvaluation(checkpoint.spec, checkpoint.weights, prompts, processor, f"{tokens} tokens of {name}")


def judge_of(request: CalibrationRequest, checkpoint: OpenedCheckpoint, count: int) -> Evaluation:
    """What a finished calibration is checked on, which it has not seen.

    A user's held-out lines where there is a folder with enough of them, else the demo's own questions about ``count``
    pictures for a demo checkpoint, else built-in samples.
    """
    if request.data is not None:
        apart = held_out_of_folder(request.data, request.samples, request.seed, count)
        if apart:
            return on_samples(checkpoint, apart, request.data.name)
    if is_demo(checkpoint):
        return DemoEvaluation(checkpoint, count, CHECKED)
    side = checkpoint.spec.image.overview
    return on_samples(checkpoint, list(built_in(count, request.seed, side=side, first=HELD_OUT_FIRST)), BUILT_IN)


def on_samples(checkpoint: OpenedCheckpoint, samples: Sequence[Sample], source: str) -> SampleEvaluation:
    """An evaluation on samples as the checkpoint's own processor prepares them."""
    assert checkpoint.weights is not None
    processor, tokenizer = processor_of(checkpoint)
    return SampleEvaluation(
        checkpoint.spec, checkpoint.weights, list(prepare(samples, processor, tokenizer)), processor, source
    )
