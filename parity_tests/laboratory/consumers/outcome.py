"""What a cell of the consumers' table says: answers and ids compared, and errors in a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from parity_tests.laboratory.consumers.question import Question

FAILS = "FAILS"
"""In every cell that counts against a tool or a package."""

NOT_RUN = "not run"
Ask = Callable[[], Sequence[tuple[int, ...]]]


def first_line(error: Exception) -> str:
    """The first line of what an error says; its class where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:160]


def compared(asked: Sequence[Question], answers: Ask) -> str:
    """Whether a tool's answers are ours, token by token; ids that end an answer are no part of it."""
    try:
        given = answers()
    except Exception as error:  # every tool has errors of its own, and this one's words are the result
        return f"{FAILS}: {first_line(error)}"
    parts = []
    for question, ids in zip(asked, given, strict=True):
        ended = next((place for place, token in enumerate(ids) if token in question.stops), len(ids))
        same = tuple(ids[:ended]) == question.answer
        parts.append(f"{question.kind} {'equal' if same else f'{FAILS}: other tokens'} ({ended})")
    return ", ".join(parts)


def ids_compared(ours: Sequence[Sequence[int]], ids: Callable[[], Sequence[Sequence[int]]]) -> str:
    """In how many of the texts a tool's tokenizer gives our ids; a failure unless in all."""
    try:
        given = ids()
    except Exception as error:  # as in `compared`
        return f"{FAILS}: ids: {first_line(error)}"
    same = sum(list(theirs) == list(mine) for theirs, mine in zip(given, ours, strict=True))
    return f"{'' if same == len(ours) else f'{FAILS}: '}ids of {same}/{len(ours)} texts"
