"""Targets: places to run, with their limits, formats and layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from runtime_py.backends.record import Ability, RuntimeBackend

ANSWER_ROOM = 256
"""Positions for a question and its answer beside a picture, where a context is chosen for a model."""

WHOLE_CONTEXT, WHOLE_CHUNK = 1024, 64
"""Limits that are raised for a model are multiples of these."""


@dataclass(frozen=True)
class Limits:
    """Sizes a package is built for.

    Attributes:
        context: positions in the key/value cache, prompt and answer together.
        prefill_chunk: tokens fed to the decoder in one call at most.
        batch: sequences at a time.
    """

    context: int
    prefill_chunk: int
    batch: int = 1

    def capped(self, positions: int) -> Limits:
        """The same limits for a model of fewer positions."""
        context = min(self.context, positions)
        return Limits(context, min(self.prefill_chunk, context), self.batch)

    def holding(self, rows: int) -> Limits:
        """The same limits, raised where a picture of ``rows`` rows would not fit: the chunk takes it in one call, the
        context beside a question and an answer.
        """
        context, chunk = self.context, self.prefill_chunk
        if rows + ANSWER_ROOM > context:
            context = -(-(rows + ANSWER_ROOM) // WHOLE_CONTEXT) * WHOLE_CONTEXT
        if rows > chunk:
            chunk = -(-rows // WHOLE_CHUNK) * WHOLE_CHUNK
        return Limits(context, chunk, self.batch)


@dataclass(frozen=True)
class ModelServer:
    """A place that is a Triton server: packages for it lie in a model repository, ready to load.

    Attributes:
        instances: ``kind`` of the instance group in config.pbtxt: ``KIND_CPU``, or ``KIND_AUTO``, one a GPU if there is any.
        distributions: what the server's Python needs beside the runtime's own, as requirements.
        gpus: of one replica.
    """

    instances: str
    distributions: tuple[str, ...]
    gpus: int = 0


@dataclass(frozen=True)
class Target:
    """A place to run.

    Attributes:
        name: ``cpu``, ``desktop-gpu``, ``android``, ``ios``, ...
        title: one line for people.
        backends: whose files the package holds; the first runs it by default.
        precisions: what ``--precision`` accepts here; the first is the default.
        contains: what the package holds, a line each.
        needs: what the place must have to run it, a line each.
        precision_aliases: further words for a precision, e.g. ``q4f16_1`` for ``int4``.
        phone: the package holds a library that only a phone runs, beside one of the same model for this machine.
        server: how it is served; then ``-o`` names a model repository, in which the package is one model.
    """

    name: str
    title: str
    backends: tuple[RuntimeBackend, ...]
    precisions: tuple[str, ...]
    limits: Limits
    contains: tuple[str, ...]
    needs: tuple[str, ...]
    precision_aliases: Mapping[str, str] = field(default_factory=dict)
    phone: bool = False
    server: ModelServer | None = None

    @property
    def backend_names(self) -> tuple[str, ...]:
        """Names of the files that the package holds, in order."""
        return tuple(backend.name for backend in self.backends)

    @property
    def runs(self) -> RuntimeBackend:
        """The backend that runs the package by default."""
        return self.backends[0]

    def can(self, ability: Ability) -> bool:
        """Whether any of the backends can."""
        return any(backend.can(ability) for backend in self.backends)

    def precision(self, asked: str | None) -> str | None:
        """The precision a user's word means here, or None when this target does not offer it."""
        if asked is None:
            return self.precisions[0]
        name = self.precision_aliases.get(asked, asked)
        return name if name in self.precisions else None
