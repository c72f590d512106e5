"""Texts that end an answer, found across tokens."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Lets an answer's text through up to the stop text that is whole first; what may be the beginning of one waits.

    Of those that end with the same character the longest counts. So an answer ends alike however its tokens part it.

    Attributes:
        reached: one was met; nothing more comes through.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.reached = False

    def push(self, text: str) -> str:
        """The part of the answer that is certain after ``text`` was added to it."""
        if self.reached:
            return ""
        if not self._stops:
            return text
        self._held += text
        met = [(place + len(stop), place) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if met:
            self.reached = True
            shown, self._held = self._held[: min(met)[1]], ""
            return shown
        waiting = max(self._beginning(stop) for stop in self._stops)
        shown, self._held = self._held[: len(self._held) - waiting], self._held[len(self._held) - waiting :]
        return shown

    def finish(self) -> str:
        """What still waits when the answer has ended otherwise."""
        rest, self._held = self._held, ""
        return rest

    def _beginning(self, stop: str) -> int:
        """How many characters at the end of the held text begin ``stop``."""
        most = min(len(stop) - 1, len(self._held))
        return next((count for count in range(most, 0, -1) if self._held.endswith(stop[:count])), 0)
