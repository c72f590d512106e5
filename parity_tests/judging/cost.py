"""What the package as delivered says beside full precision, counted once for reports and presets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parity_tests.judging.answer_scores import mean_scores
from parity_tests.judging.metrics import equal_prefix
from parity_tests.judging.results import Run
from parity_tests.judging.run_details import Answer, Details

WIRE, GOLDEN = "wire", "golden"
"""Comparisons of runs that hold no answer against full precision's, whatever flags they are given."""


@dataclass(frozen=True)
class Cost:
    """The package as delivered beside full precision.

    Attributes:
        answers, different: answers compared, and those whose text differs.
        tokens, equal: the reference's greedy tokens up to and with its stop token, and those equal before the first that
            is not.
        kl, agreement: mean KL in nats and share of equal first tokens over the positions that are read; None where logits
            could not be compared.
        right, right_in_full: shares of answers that are exactly right, of those that full precision ended within the steps
            asked for; None where there is none, or no truth is known.
        known, ended: answers whose truth is known, and those of them that full precision ended.
    """

    answers: int
    different: int
    tokens: int
    equal: int
    kl: float | None
    agreement: float | None
    right: float | None
    right_in_full: float | None
    known: int
    ended: int


def cost_of(details: Details) -> Cost:
    """The cost as a run's details tell it, each question counting as much as any other."""
    compared = [_tokens(answer) for answer in details.answers]
    rows = details.similarity
    known = [answer for answer in details.answers if answer.truth]
    # the beginning of a right answer is another text than the whole of it
    ended = [answer for answer in known if answer.length is not None]
    return Cost(
        answers=len(details.answers),
        different=sum(answer.reference != answer.candidate for answer in details.answers),
        tokens=sum(total for total, _ in compared),
        equal=sum(equal for _, equal in compared),
        kl=sum(row.kl_mean for row in rows) / len(rows) if rows else None,
        agreement=sum(row.top1_agreement for row in rows) / len(rows) if rows else None,
        right=mean_scores([answer.candidate_scores for answer in ended]).get("exact"),
        right_in_full=mean_scores([answer.reference_scores for answer in ended]).get("exact"),
        known=len(known),
        ended=len(ended),
    )


def how_to_measure(run: Run) -> str:
    """What to do where a run did not hold answers against full precision's."""
    names = {comparison.name for comparison in run.comparisons}
    if WIRE in names:
        return "a server's tokens alone were compared; leave --server out to measure it"
    if GOLDEN in names:
        return "a golden holds no answers of full precision; ask a package of it with --package"
    return "give the checkpoint with --reference"


def _tokens(answer: Answer) -> tuple[int, int]:
    """(tokens of the reference up to and with its stop token, leading equal ones)."""
    total = len(answer.reference_ids) if answer.length is None else min(answer.length + 1, len(answer.reference_ids))
    return total, equal_prefix(np.array(answer.reference_ids[:total]), np.array(answer.candidate_ids[:total]))
