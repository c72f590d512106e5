"""Prompt lookup decoding: draft tokens from where an answer's last tokens occurred before.

Answers about documents and data repeat them. Where the newest tokens of an answer occur earlier, in the prompt or in the
answer, the tokens that followed them there are the draft, and one decoder call verifies them all: each row of its logits
gives the token that a step would have given. There is no draft model. Method: apoorvumang/prompt-lookup-decoding, README.md;
huggingface/transformers has it as ``prompt_lookup_num_tokens``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LENGTHS = (4, 3)
"""Tokens that must have occurred before, longest first. Two occur again by chance, in prose as often as in data."""

FIRST = 3
"""Draft tokens of the first call; a call that accepts all of them doubles their number."""

LONGEST_REST = 32
"""Tokens that are chosen without a draft after calls that accepted nothing: 1, then 2, up to these."""


class PromptLookup:
    """The drafts of one answer.

    Args:
        prompt: ids of the prompt; placeholders of image rows among them match nothing, as no answer says them.
        most: draft tokens of one call at most.
    """

    def __init__(self, prompt: Iterable[int], most: int) -> None:
        self.most = most
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._reach = FIRST
        self._misses = self._rest = 0
        for token in prompt:
            self.add(token)

    def add(self, token: int) -> None:
        """A token of the prompt, or of the answer, in order."""
        for length in LENGTHS:
            if len(self._ids) >= length:
                self._after[tuple(self._ids[-length:])] = len(self._ids)
        self._ids.append(token)
        self._rest = max(self._rest - 1, 0)

    def draft(self, room: int) -> Sequence[int]:
        """What may follow the newest token, at most ``room`` tokens; none where the last tokens did not occur before, or
        after drafts of which nothing was accepted.
        """
        count = min(self._reach, self.most, room)
        if count < 1 or self._rest:
            return ()
        for length in LENGTHS:
            place = self._after.get(tuple(self._ids[-length:]))
            if place is not None:
                return self._ids[place : place + count]
        return ()

    def record(self, drafted: int, accepted: int) -> None:
        """Adapt the length of drafts to how many tokens of the last one were accepted."""
        if accepted:
            self._misses = 0
            self._reach = 2 * drafted if accepted == drafted else accepted + 1
        else:
            self._rest = min(2**self._misses, LONGEST_REST)
            self._misses += 1
            self._reach = 1
