"""Names of the figures of a run's ``accuracy``: those of a demo's task, and the mean scores of a user's own questions."""

from __future__ import annotations

TASK, OWN = "task: ", "answers: "
"""How figures of a demo's task begin, and those of own questions (`parity_tests.judging.answer_scores`)."""

ALL_FIVE = f"{TASK}all five"
"""The share of right answers over the five tasks, a demo's main figure."""

ASKED = f"{TASK}questions asked"
EXACT = f"{OWN}exact"
KNOWN = f"{OWN}questions with a truth"


def in_full(name: str) -> str:
    """The figure of full precision beside the package's ``name``."""
    return f"full precision: {name}"
