"""Every row of the embedding, held against the reference's: questions read a few dozen of a hundred thousand.

A table that is shifted behind some token, has one row too many or one that is damaged answers the questions of a check as it
should, and everything else wrongly. The head's rows need no such look, for every position of every question reads them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from parity_tests.check.candidate import Candidate
from parity_tests.judging.metrics import Kind, measure
from parity_tests.judging.results import Comparison, Divergence, Measurement
from parity_tests.judging.standards import Standard, Table
from parity_tests.thresholds import limits
from runtime_py.contracts import EMBED

if TYPE_CHECKING:
    from parity_tests.reference.reference import TorchBackend

NAME = "embedding rows"


def other_rows(
    candidate: Candidate,
    reference: TorchBackend,
    standard: Standard,
    compared: Sequence[Comparison],
    table: Table | None = None,
) -> tuple[Comparison, Divergence] | None:
    """A failed comparison of the part of the table that has the first wrong row; None where every row is right.

    Args:
        reference: it holds the candidate's own numbers.
        standard: how close they must be.
        compared: what questions showed; where their rows are wrong already, no other one is looked up.
        table: limits that go before the built-in ones.
    """
    bounds = limits(standard, Kind.EMBEDS, candidate.manifest["family"], table)
    asked = [m for each in compared if each.standard is standard for m in each.measurements if m.kind is Kind.EMBEDS]
    if not all(bound.holds(measurement.metrics) for measurement in asked for bound in bounds):
        return None
    vocabulary, at_once = reference.spec.decoder.vocabulary, candidate.limits.prefill_chunk
    for start in range(0, vocabulary, at_once):
        ids = np.arange(start, min(start + at_once, vocabulary), dtype=np.int64)[None]
        expected, actual = (side.run(EMBED, {"input_ids": ids})["inputs_embeds"] for side in (reference, candidate.backend))
        if np.array_equal(expected, actual):
            continue
        metrics = measure(Kind.EMBEDS, expected, actual)
        if all(bound.holds(metrics) for bound in bounds):
            continue
        furthest = int(np.argmax(np.nan_to_num(np.abs(actual - expected), nan=np.inf).max(axis=-1)))
        measured = Measurement("table", EMBED, Kind.EMBEDS, tuple(expected.shape), metrics)
        failed = Comparison(NAME, standard, "reference", candidate.name, (measured,))
        last = int(ids[0, -1])
        note = f"of the rows of tokens {start} to {last}, that of token {start + furthest} is furthest from the reference's"
        return failed, Divergence(EMBED, "table", note=note)
    return None
