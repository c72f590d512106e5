"""The kinds of hostile requests, each a generator of attempts from random numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from parity_tests.laboratory.hostile_requests.attempt import Attempt
from parity_tests.laboratory.hostile_requests.hostile_connections import HostileConnections
from parity_tests.laboratory.hostile_requests.triton_kinds import FATAL, Call
from parity_tests.laboratory.hostile_requests.wires import Wire
from runtime_py.errors import UsageError


class Kinds(HostileConnections):
    """What can be made for a model of this name.

    Args:
        more: kinds that only this server has.
    """

    def __init__(
        self, name: str, draw: random.Random, wire: Wire, more: Mapping[str, Callable[[], Attempt | Call]] | None = None
    ) -> None:
        super().__init__(name, draw, wire)
        self.kinds: Mapping[str, Callable[[], Attempt | Call]] = {
            "broken pictures": self.broken_picture,
            "decompression bombs": self.bomb,
            "absurd sizes": self.absurd_size,
            "wrong types": self.wrong_type,
            "deep or malformed JSON": self.malformed,
            "hostile schemas": self.schema,
            "endless bodies": self.endless,
            "slow clients": self.slow,
            "clients that leave": self.leaving,
            "paths and URLs": self.path,
            "addresses of pictures": self.address,
            "floods of headers": self.headers,
            "framing": self.framing,
            **(more or {}),
        }

    def choose(self, only: str | None, without: Collection[str]) -> None:
        """Keep one kind alone, or leave some out; one that ends the server is left out unless it is kept.

        Raises:
            UsageError: there is no such kind.
        """
        unknown = {*without, *([only] if only else [])} - set(self.kinds)
        if unknown:
            raise UsageError(f"no kind {min(unknown)!r}", ", ".join(self.kinds), "choose another")
        kept = {only} if only else set(self.kinds) - {*without, FATAL}
        self.kinds = {name: make for name, make in self.kinds.items() if name in kept}

    def any(self, number: int) -> Attempt | Call:
        """The kinds in turn, with what is right of this server."""
        names = list(self.kinds)
        made = self.kinds[names[number % len(names)]]()
        return replace(made, right=self.wire.right(made.kind, made.right))
