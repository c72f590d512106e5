"""What the package as delivered says beside full precision, counted once for reports and presets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parity_tests.judging.answer_scores import mean_scores
from parity_tests.judging.metrics import equal_prefix
from parity_tests.judging.run_details import Answer, Details


@dataclass(frozen=True)
class Cost:
    """The package as delivered beside full precision.

    Attributes:
        answers, different: answers compared, and those whose text differs.
        tokens, equal: the reference's greedy tokens up to and with its stop token, and those equal before the first that
            is not.
        kl, agreement: mean KL in nats and share of equal first tokens over the positions that are read; None where logits
            could not be compared.
        right, right_in_full: shares of answers that are exactly right; None where no truth is known.
    """

    answers: int
    different: int
    tokens: int
    equal: int
    kl: float | None
    agreement: float | None
    right: float | None
    right_in_full: float | None


def cost_of(details: Details) -> Cost:
    """The cost as a run's details tell it, each question counting as much as any other."""
    compared = [_tokens(answer) for answer in details.answers]
    rows = details.similarity
    return Cost(
        answers=len(details.answers),
        different=sum(answer.reference != answer.candidate for answer in details.answers),
        tokens=sum(total for total, _ in compared),
        equal=sum(equal for _, equal in compared),
        kl=sum(row.kl_mean for row in rows) / len(rows) if rows else None,
        agreement=sum(row.top1_agreement for row in rows) / len(rows) if rows else None,
        right=mean_scores([answer.candidate_scores for answer in details.answers]).get("exact"),
        right_in_full=mean_scores([answer.reference_scores for answer in details.answers]).get("exact"),
    )


def _tokens(answer: Answer) -> tuple[int, int]:
    """(tokens of the reference up to and with its stop token, leading equal ones)."""
    total = len(answer.reference_ids) if answer.length is None else min(answer.length + 1, len(answer.reference_ids))
    return total, equal_prefix(np.array(answer.reference_ids[:total]), np.array(answer.candidate_ids[:total]))
