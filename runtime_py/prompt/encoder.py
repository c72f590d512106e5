"""A conversation to token ids, for the processor of every family.

Marks are looked up in the tokenizer by their text. Where it does not know one, or cuts it into pieces, the id that the
prompt declares is put in its place; where neither knows it, the mark is text like any other.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from runtime_py.errors import TooLongError, UsageError
from runtime_py.preprocess.base import Message, TokenizerLike
from runtime_py.prompt.check import check
from runtime_py.prompt.format import PromptFormat, prompt_of
from runtime_py.prompt.render import Blocks, Run, render

log = logging.getLogger(__name__)

CHARACTERS = 8
"""For each token that a prompt may have: a text of fewer is encoded at once. Most texts have three or four to a token."""

FAR = 2
"""Times what a prompt may have: a text that is cut anywhere has a few tokens more than the whole."""


class PromptEncoder:
    """Encodes by the ``prompt`` of a processor's settings.

    Args:
        settings: the settings; read when a prompt is first asked for, so that pictures need none.
        tokenizer: None where only ids of marks are wanted.

    Attributes:
        cuts: see `runtime_py.preprocess.base.ChecksConversations`; so `most`.
    """

    def __init__(self, settings: Mapping[str, Any], tokenizer: TokenizerLike | None) -> None:
        self._settings = settings
        self.tokenizer = tokenizer
        self.cuts = True
        self.most: int | None = None

    @cached_property
    def form(self) -> PromptFormat:
        return prompt_of(self._settings)

    def find(self, mark: str) -> int | None:
        """A mark's id: the tokenizer's where it has one, else the declared one, else None."""
        known = self.tokenizer.token_id(mark) if self.tokenizer is not None else None
        return self.form.marks.get(mark) if known is None else known

    def id(self, mark: str) -> int:
        """As `find`.

        Raises:
            UsageError: the tokenizer does not know the mark, and the settings have no id for it.
        """
        token = self.find(mark)
        if token is None:
            raise UsageError(
                f"the tokenizer has no token {mark}", "every mark of the model's prompt", "use the published tokenizer"
            )
        return token

    def check(self, messages: Sequence[Message], pictures: int) -> None:
        """Raise UsageError unless the model has a form for this conversation with that many pictures."""
        check(self.form, messages, pictures)

    def encode(self, messages: Sequence[Message], blocks: Blocks) -> np.ndarray:
        """Int64 (1, tokens) ids of a conversation.

        Args:
            blocks: picture by its index to what stands for it.

        Raises:
            UsageError: no tokenizer; a conversation that the model has no form for; or a prompt beyond its limit, which
                is cut from the right instead, with a warning, where the published code does so, no picture is cut, and
                `cuts` is true.
        """
        if self.tokenizer is None:
            raise UsageError(
                "there is no tokenizer to encode text with",
                "tokenizer files in the package",
                "export again from a checkpoint that has them",
            )
        self.check(messages, len(blocks))
        begin = self.find(self.form.begin) if self.form.begin else None
        ids = [] if begin is None else [begin]
        runs: list[Run] = render(self.form, messages, blocks)
        if self.form.begin and begin is None:
            runs = [self.form.begin, *runs]
        for run in runs:
            if isinstance(run, str):
                self._check_length(run)
            ids += self.text_ids(run) if isinstance(run, str) else run
        return np.asarray([self._within_limit(ids)], dtype=np.int64)

    def text_ids(self, text: str) -> list[int]:
        """Ids of text with marks in it."""
        assert self.tokenizer is not None
        if not self._unencodable:
            return self.tokenizer.encode(text)
        ids: list[int] = []
        for piece in re.split("(" + "|".join(map(re.escape, self._unencodable)) + ")", text):
            if piece in self._unencodable:
                ids.append(self._unencodable[piece])
            elif piece:
                ids += self.tokenizer.encode(piece)
        return ids

    def _check_length(self, text: str) -> None:
        """Refuse a text that is far longer than `most` by its beginning. A tokenizer takes minutes and gigabytes over the
        megabytes that a request may have, and lets nobody else at the interpreter; here it sees a little at a time.
        """
        if self.most is None:
            return
        size, tokens = CHARACTERS * self.most, 0
        for start in range(0, len(text), size) if len(text) > size else ():
            tokens += len(self.text_ids(text[start : start + size]))
            if tokens > FAR * self.most:
                raise TooLongError(
                    f"the prompt has more than {FAR * self.most} tokens",
                    f"at most {self.most}, the context of the package",
                    "shorten the conversation (/reset in chat)",
                )

    @cached_property
    def _unencodable(self) -> dict[str, int]:
        """Marks that the tokenizer does not give back as one id, the longest first."""
        assert self.tokenizer is not None
        tokens = {}
        for mark in sorted(self.form.marks, key=len, reverse=True):
            token = self.find(mark)
            if token is not None and self.tokenizer.encode(mark) != [token]:
                tokens[mark] = token
        return tokens

    def _within_limit(self, ids: list[int]) -> list[int]:
        limit = self.form.limit
        if not limit or len(ids) <= limit:
            return ids
        end = self.find(self.form.picture.after)
        pictures = len(ids) - ids[::-1].index(end) if end in ids else 0
        if not (self.form.cuts and self.cuts) or pictures > limit:
            told = f", of which the pictures take the first {pictures}" if pictures > limit else ""
            raise TooLongError(
                f"the prompt has {len(ids)} tokens{told}",
                f"at most {limit}, which the model's prompt may have",
                "send fewer or smaller pictures" if pictures > limit else "shorten the conversation (/reset in chat)",
            )
        log.warning("prompt of %d tokens cut to the model's %d; the end of the question is lost", len(ids), limit)
        return ids[:limit]
