"""How much a session may hold and feed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


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
