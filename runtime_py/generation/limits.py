"""How much a session may hold and feed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

SLOTS = 8
"""Answers at a time, unless a package was planned for another number of sequences."""

MOST_SLOTS = 4096
"""Each holds a session, and cache positions once it answers: more are a slip."""


class SessionLimits(Protocol):
    """The part of targets.base.Limits that a session obeys; the manifest's ``limits`` give the same."""

    @property
    def context(self) -> int: ...

    @property
    def prefill_chunk(self) -> int: ...


@dataclass(frozen=True)
class Limits:
    """Sizes a package was built for: cache positions, and tokens per decoder call, at most."""

    context: int
    prefill_chunk: int
    batch: int = 1


def slots_for(batch: int) -> int:
    """Answers at a time that a package gives unless told otherwise; ``batch`` is 1 where it was planned for no number."""
    return batch if batch > 1 else SLOTS
