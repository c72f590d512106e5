"""Everyone's answers to the same questions: full precision, the reference with the stored numbers, the package."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from parity_tests.check.candidate import Candidate
from parity_tests.judging.probes import Question, Recording, record
from runtime_py.backends.base import Backend
from runtime_py.errors import TooLongError, UsageError
from runtime_py.generation.sampler import Sampling
from runtime_py.generation.session import Limits
from runtime_py.preprocess.base import Processor

if TYPE_CHECKING:
    from parity_tests.reference.reference import TorchBackend

log = logging.getLogger("edgeproof.parity")

Answers = tuple[Recording, Recording, Recording | None, Recording]
"""Full-precision reference, reference with the stored numbers, exact copy of the package, package."""


def ask_all(
    full: TorchBackend,
    stored: TorchBackend | None,
    exact: Candidate | None,
    candidate: Candidate,
    processor: Processor,
    asked: list[Question],
    steps: int,
    sampling: Sampling | None = None,
) -> list[Answers]:
    """Everyone's answers to every question, one backend after the other, so that only one holds its weights at a time.

    Args:
        sampling: settings of one more answer to each; None for greedy answers alone.
    """
    expected = [said_by_reference(full, candidate, processor, question, steps, None, sampling) for question in asked]
    fed = list(zip(asked, [recording.arrays["greedy_ids"] for recording in expected], strict=True))
    inside = expected
    if stored is not None:
        inside = [said_by_reference(stored, candidate, processor, q, steps, forced, sampling) for q, forced in fed]
    tight: list[Recording | None] = [None] * len(asked)
    if exact is not None:
        tight = [_said(exact, q, steps, forced, sampling) for q, forced in fed]
        exact.release()
    said = [_said(candidate, q, steps, forced, sampling) for q, forced in fed]
    return list(zip(expected, inside, tight, said, strict=True))


def ask_again(candidate: Candidate, asked: list[Question], known: Sequence[Answers], steps: int) -> list[Answers]:
    """Another package's answers in place of those of the package that was asked, everyone else's as they are known."""
    said = [
        _said(candidate, question, steps, answers[0].arrays["greedy_ids"], None)
        for question, answers in zip(asked, known, strict=True)
    ]
    return [(*answers[:3], other) for answers, other in zip(known, said, strict=True)]


def _said(side: Candidate, question: Question, steps: int, forced: np.ndarray, sampling: Sampling | None) -> Recording:
    began = time.monotonic()
    try:
        recording = record(side.backend, side.processor, side.limits, question, steps, forced, sampling)
    except TooLongError:
        raise
    except UsageError as error:
        fitting = with_own_places(side.processor, question)
        if np.array_equal(fitting.input_ids, question.input_ids):
            raise
        log.warning("%s is asked with other places for pictures: %s", question.name, error.what)
        recording = record(side.backend, side.processor, side.limits, fitting, steps, forced, sampling)
    recording.seconds = time.monotonic() - began
    log.info("%s answered %s in %.1f s", side.backend.name, question.name, recording.seconds)
    return recording


def with_own_places(processor: Processor, question: Question) -> Question:
    """The question with as many places for picture rows as a processor makes of its pictures.

    A package whose settings make another number of rows is at fault, and is judged; it must not end the check.
    """
    if not question.messages:
        return question
    images = processor.images(question.pictures) if question.pictures else []
    return replace(question, input_ids=processor.encode(list(question.messages), images))


def said_by_reference(
    backend: Backend,
    candidate: Candidate,
    processor: Processor,
    question: Question,
    steps: int,
    forced: np.ndarray | None = None,
    sampling: Sampling | None = None,
) -> Recording:
    """A reference's answer in the package's place, a prompt in one call however the package is fed it."""
    began = time.monotonic()
    limits = Limits(candidate.limits.context, candidate.limits.context)
    recording = record(backend, processor, limits, replace(question, calls=1), steps, forced, sampling)
    recording.seconds = time.monotonic() - began
    log.info("%s answered %s in %.1f s", backend.name, question.name, recording.seconds)
    return recording
