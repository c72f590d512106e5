"""An answer's text as it streams, without the white space at its ends that a whole answer does not have either."""

from __future__ import annotations


class ShownText:
    """What may be the end's white space waits until more text follows it."""

    def __init__(self) -> None:
        self._begun = False
        self._white = ""

    def push(self, text: str) -> str:
        """The text that can be shown now that ``text`` has come."""
        text = self._white + text
        shown = text.rstrip()
        self._white = text[len(shown) :]
        if not self._begun:
            shown = shown.lstrip()
        self._begun = self._begun or bool(shown)
        return shown
