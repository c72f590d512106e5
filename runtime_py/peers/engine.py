"""What a peer can be asked, and what it is told to be."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtime_py.peers.shape import DecoderShape

DIFFERENT = 97
"""Tokens that a prompt is made of."""


@dataclass(frozen=True)
class Job:
    """What one peer runs.

    Attributes:
        package: of whose decoder the others are the likes; scratch: an empty folder for files of the peer's own.
        context: positions that a sequence takes at most.
        chunk: tokens of a prompt in one call; 0 leaves it to the peer.
        trust: of code that the package brings (`runtime_py.model.load`).
    """

    package: Path
    scratch: Path
    shape: DecoderShape
    threads: int
    context: int
    chunk: int = 0
    trust: str | bool = False

    @property
    def ids(self) -> np.ndarray:
        """int64 (context,): `DIFFERENT` tokens over and over, of the middle of the vocabulary, where no family has marks."""
        return self.shape.vocabulary // 2 + np.arange(self.context) % DIFFERENT

    def to_json(self) -> dict[str, Any]:
        return {
            "package": str(self.package), "scratch": str(self.scratch), "shape": self.shape.to_json(),
            "threads": self.threads, "context": self.context, "chunk": self.chunk, "trust": self.trust,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Job:
        paths = {name: Path(value[name]) for name in ("package", "scratch")}
        return cls(**{**value, **paths, "shape": DecoderShape(**value["shape"])})


class PeerEngine(Protocol):
    """A decoder that is loaded. Both leave the sequence where it is; `fill` begins a new one.

    One that knows what a step reads has an attribute ``reads`` (`runtime_py.peers.reads.Reads`).
    """

    def fill(self, tokens: int) -> None:
        """Read a prompt of so many tokens into an empty cache, up to the logits of its last token."""
        ...

    def step(self, tokens: int) -> None:
        """So many steps of one token each, with the logits of each."""
        ...


class NotHereError(Exception):
    """Why a peer is not run, in words for the table."""


def version(distribution: str) -> str:
    """Of an installed distribution.

    Raises:
        NotHereError: it is not installed.
    """
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError as error:
        raise NotHereError(f"{distribution} is not installed") from error
