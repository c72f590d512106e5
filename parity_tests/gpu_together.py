"""Questions answered side by side: a token of each of them in one decoder call, where a backend takes several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parity_tests.judging.probes import Question
from runtime_py.backends.base import Backend, Batching
from runtime_py.generation.batch_step import step_batch
from runtime_py.generation.session import Session, SessionLimits
from runtime_py.preprocess.base import Processor


def why_not_together(backend: Backend, count: int) -> str:
    """Why so many questions cannot share decoder calls; "" where they can."""
    if count < 2 or not isinstance(backend, Batching):
        return "one question" if count < 2 else f"the backend {backend.name} takes one sequence a call"
    return backend.why_not_batched(count)


def step_logits_together(
    backend: Backend, processor: Processor, limits: SessionLimits, asked: Sequence[Question], fed: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """What ``step_logits`` of a recording holds, of questions that are answered at a time.

    Args:
        fed: int64 (1, steps) of each question, the tokens of its answer.

    Returns:
        float32 (1, steps, vocabulary) of each.
    """
    assert isinstance(backend, Batching)
    states = backend.start_batch(len(asked), limits.context)
    sessions = [Session(backend, processor, limits, reserved=state) for state in states]
    rows: list[list[np.ndarray]] = []
    for session, question in zip(sessions, asked, strict=True):
        images = processor.images(question.pictures) if question.pictures else []
        layout = processor.layout(question.input_ids, images)
        rows.append([session.prefill(session.merge(layout, session.features(images)), layout, "last")])
    for step in range(fed[0].shape[1] - 1):
        for made, logits in zip(rows, step_batch(sessions, [int(tokens[0, step]) for tokens in fed]), strict=True):
            made.append(np.array(logits))
    return [np.concatenate(made, axis=1) for made in rows]
