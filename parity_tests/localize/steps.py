"""Faults that need a filled cache: every stage agrees on the prompt, and the answer's steps do not.

The reference answers on its own and its decoder calls are kept; the package is fed the same calls. The first step whose
logits differ is looked into, block by block, on the package's own cache as it was before that step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity_tests.check.candidate import Candidate
from parity_tests.judging.probes import Question
from parity_tests.reference.reference import TorchBackend
from runtime_py.backends.base import Arrays
from runtime_py.contracts import DECODER
from runtime_py.generation.session import Limits, Session
from runtime_py.preprocess.base import Processor

STEPS = 3
"""Answer steps looked at."""


class Tape:
    """A backend whose decoder calls are kept.

    Attributes:
        calls: (inputs, logit positions, logits) of every decoder call, in order.
        prefills: how many of them feed the prompt.
    """

    def __init__(self, backend: TorchBackend) -> None:
        self.backend, self.name = backend, backend.name
        self.calls: list[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]] = []
        self.prefills = 0

    def tokens(self, index: int) -> int:
        """How many tokens a call feeds."""
        return int(self.calls[index][0]["inputs_embeds"].shape[1])

    def run(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        return self.backend.run(stage, inputs)

    def start(self, capacity: int) -> Any:
        return self.backend.start(capacity)

    def forward(self, state: Any, inputs: Arrays, logit_positions: np.ndarray) -> np.ndarray:
        logits = self.backend.forward(state, inputs, logit_positions)
        self.calls.append((dict(inputs), logit_positions, logits))
        return logits

    def close(self) -> None:
        self.backend.close()


def answer_calls(reference: TorchBackend, processor: Processor, question: Question, chunk: int, context: int) -> Tape:
    """The reference's prefill, in the package's chunks, and `STEPS` answer steps."""
    tape = Tape(reference)
    session = Session(tape, processor, Limits(context, chunk))
    images = processor.images(question.pictures) if question.pictures else []
    layout = processor.layout(question.input_ids, images)
    logits = session.prefill(session.merge(layout, session.features(images)), layout, "last")
    tape.prefills = len(tape.calls)
    for _ in range(min(STEPS, session.room)):
        logits = session.step(int(np.argmax(logits[0, -1])))
    return tape


def first_bad_call(tape: Tape, candidate: Candidate, wrong: Any) -> tuple[int, Mapping[str, np.ndarray]] | None:
    """Index of the first call whose logits differ, and the package's cache before it; None when all agree.

    Args:
        wrong: (expected, found) -> whether they differ.
    """
    backend = candidate.backend
    state = backend.start(candidate.limits.context)
    for index, (inputs, positions, expected) in enumerate(tape.calls):
        before = candidate.examiner.cache_of(state)
        logits = backend.forward(state, inputs, positions)
        if wrong(expected, logits):
            return index, before
    return None


def reference_blocks(
    reference: TorchBackend, tape: Tape, index: int, context: int, inside: bool = False
) -> dict[str, np.ndarray]:
    """The reference's block outputs of one call, the calls before it fed first."""
    state = reference.start(context)
    for inputs, positions, _ in tape.calls[:index]:
        reference.forward(state, inputs, positions)
    inputs, positions, _ = tape.calls[index]
    with reference.watch(inside) as seen:
        reference.forward(state, inputs, positions)
    return seen.blocks[DECODER]
