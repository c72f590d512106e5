"""A user's own pictures and questions (``--data``), as the check asks them.

A sample is asked its conversation up to the last user's turn; what stood behind it is the truth. All of it is prepared
before the first model runs, so that a picture that does not fit is an error at once and not after an hour.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from calibrate.samples.data import Sample, samples_of
from calibrate.samples.records import QUESTION, records
from parity_tests.check.package_questions import with_two_calls
from parity_tests.check.prompts import Prompt
from parity_tests.judging.probes import Question
from runtime_py.errors import EdgeproofError, UsageError
from runtime_py.preprocess.base import Processor
from runtime_py.preprocess.extent import PredictsExtent, check_extent

SAMPLES = 20
"""Own samples that are asked where nobody says how many."""

OWN_STEPS = 32
"""Answer tokens per own question."""

BATCH_BYTES = 1 << 30
"""Of logits that one batch of own questions may keep, over all sides."""

SIDES = 4
"""Who answers at most, see `parity_tests.check.ask.Answers`."""


@dataclass(frozen=True)
class OwnData:
    """What ``--data`` names, read.

    Attributes:
        samples: those that are asked.
        total: how many there are.
    """

    samples: tuple[Sample, ...]
    total: int


def read_data(folder: Path, count: int | None = None, question: str | None = None) -> OwnData:
    """The first samples of a user's data, pictures decoded.

    Raises:
        UsageError, ImageError: with file and line.
    """
    if count is not None and count < 1:
        raise UsageError(f"--samples {count}", "a whole number of at least 1", "correct the number")
    rows = records(folder, question or QUESTION)
    return OwnData(tuple(samples_of(rows[: count or SAMPLES])), len(rows))


def own_questions(data: OwnData, processor: Processor, context: int, steps: int) -> list[Question]:
    """Every sample as a question, the last fed in two calls.

    Raises:
        UsageError, ImageError: one that the model cannot take; file and line are named.
    """
    names = Counter(sample.name for sample in data.samples)
    asked = []
    for number, sample in enumerate(data.samples, 1):
        name = sample.name if names[sample.name] == 1 else f"{sample.name} ({number})"
        try:
            asked.append(_own_question(replace(sample, name=name), processor, context, steps))
        except EdgeproofError as error:
            raise type(error)(f"{sample.place}: {error.what}", error.expected, error.next_step) from error
    return with_two_calls(asked)


def _own_question(sample: Sample, processor: Processor, context: int, steps: int) -> Question:
    turns = list(sample.messages)
    while turns and turns[-1].role == "assistant":
        turns.pop()
    if not turns or turns[-1].role != "user":
        raise UsageError("the conversation asks nothing", "a user's turn at its end, before the answer", "add the question")
    if isinstance(processor, PredictsExtent):
        for picture in sample.pictures:
            height, width = picture.shape[:2]
            check_extent(processor.extent(width, height), context, "the picture", width, height)
    used = [index for turn in turns for index in turn.images]
    if len(used) != len(sample.pictures):
        raise UsageError("the last answer shows a picture", "pictures in questions", "move the picture into a question")
    prompt = Prompt(sample.name, sample.pictures, tuple(turns), sample.answers)
    question = prompt.question(processor)
    if question.positions + steps > context:
        raise UsageError(
            f"the prompt takes {question.positions:,} positions, and the answer {steps}",
            f"at most {context:,} together, the context this package was built for",
            "shorten it, lower --steps, or export with a larger --context",
        )
    return question


def batches(asked: Sequence[Question], vocabulary: int, steps: int) -> Iterator[list[Question]]:
    """Questions in order, as many at a time as keep their logits within `BATCH_BYTES`."""
    batch: list[Question] = []
    held = 0
    for question in asked:
        size = 4 * SIDES * vocabulary * (question.positions + 3 * steps)
        if batch and held + size > BATCH_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(question)
        held += size
    if batch:
        yield batch
