"""A request that was read, as a question to the service; both servers, OpenAI's and Triton's, make theirs here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import numpy as np

from runtime_py.engine.running import Constraint, Wish
from runtime_py.engine.service import Question, Service
from runtime_py.generation.generate import settings_of
from runtime_py.preprocess.clips import takes_clips
from runtime_py.serving.clips import with_clips
from runtime_py.serving.grammar import Grammars
from runtime_py.serving.pictures import PictureLimits
from runtime_py.serving.refusal import Refusal, invalid
from runtime_py.serving.request import ChatRequest
from runtime_py.serving.room import Reservation

Source = TypeVar("Source", str, bytes)


class Questions:
    """Makes the questions of one service; used from several threads."""

    def __init__(self, service: Service, limits: PictureLimits) -> None:
        self._service, self._limits = service, limits
        self._grammars: Grammars | None = None

    def of(
        self,
        asked: ChatRequest,
        held: Reservation,
        sources: Sequence[Source],
        opened: Callable[[Source, PictureLimits], np.ndarray],
    ) -> Question:
        """The question of a request.

        Args:
            held: grows by every picture before it is decoded.
            sources: of the request's pictures, in their order; equal ones are opened once.
            opened: uint8 RGB (height, width, 3) of a source, within the limits.

        Raises:
            Refusal: a picture cannot be used, the frames of a clip differ in size, or a schema is not to be kept here.
            UsageError: a setting that no answer can have.
        """
        settings = settings_of(self._service.package.generation, asked.overrides)
        constraint = self._constraint(asked)

        def check(name: str, width: int, height: int) -> None:
            if self._limits.check is not None:
                self._limits.check(name, width, height)
            held.add_picture(width, height)

        limits = replace(self._limits, check=check)
        known: dict[Source, np.ndarray] = {}
        for number, source in enumerate(sources, 1):
            if source not in known:
                with _told_which(number, len(sources)):
                    known[source] = opened(source, limits)
        turns, pictures = asked.turns, [known[source] for source in sources]
        if takes_clips(self._service.processor):
            turns, pictures = with_clips(turns, pictures)
        return Question(turns, pictures, Wish(settings, asked.stops, asked.logprobs, constraint))

    def _constraint(self, asked: ChatRequest) -> Constraint | None:
        if asked.schema is None:
            return None
        stops = self._service.package.generation["stop_ids"]  # a request may do without; where a schema ends, an answer does
        if not stops:
            raise invalid("this package names no token that ends an answer, which a schema needs", "response_format")
        self._grammars = self._grammars or Grammars(self._service.tokenizer, stops[0])
        return self._grammars.of_schema(asked.schema)


@contextmanager
def _told_which(number: int, pictures: int) -> Iterator[None]:
    """What is wrong with one of several pictures says with which, counted from 1."""
    try:
        yield
    except Refusal as refusal:
        if pictures > 1 and refusal.status < 429:  # else it is the server that has no room
            refusal.message = f"picture {number} of {pictures}: {refusal.message}"
        raise
