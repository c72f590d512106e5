"""What a family's processor does: pictures to arrays, messages to ids, ids to decoder inputs.

There is one implementation per family, in NumPy and Pillow, used by export, calibration, parity and runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from runtime_py.errors import UsageError


@dataclass(frozen=True)
class ImageInputs:
    """One call of the vision encoder and one of the connector.

    Attributes:
        vision: inputs of the vision encoder by contract name; ``pixel_values`` float32 (images, 3, height, width).
        connector: further inputs of the connector by contract name, beside ``vision_features``.
        rows: how many rows of ``image_features`` (all images of this call together) enter the prompt.
        source: index of the picture in the conversation this came from.
        state: what the processor's own ``encode`` and ``layout`` want to know of it again, e.g. the patch grid.
    """

    vision: Mapping[str, np.ndarray]
    connector: Mapping[str, np.ndarray]
    rows: int
    source: int = 0
    state: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """A prompt as the decoder will see it.

    Attributes:
        input_ids: int64 (1, tokens) with every image row expanded to one placeholder id that the embedding table has.
        image_rows: bool (tokens,); True where a row of image features replaces the token embedding, in order.
        decoder: further decoder inputs by contract name, each covering all tokens on its last axis, along which it is
            cut into prefill chunks, e.g. ``position_ids`` int64 (1, tokens) or (axes, 1, tokens).
        state: whatever ``next_inputs`` needs; JSON-able.
        penalised_ids: int64 (ids,), each once: what a repetition penalty counts beside the answer. The prompt's ids,
            placeholders too, where the published code hands ids to transformers' ``generate``; none where it hands
            embeddings, of which `generate` knows no ids.
    """

    input_ids: np.ndarray
    image_rows: np.ndarray
    decoder: Mapping[str, np.ndarray]
    state: Mapping[str, Any] = field(default_factory=dict)
    penalised_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        text: all of its text.
        images: indices into the conversation's picture list.
        parts: texts and indices of pictures in the order they were given, where that matters; without them the pictures
            come first.
    """

    role: str
    text: str
    images: tuple[int, ...] = ()
    parts: tuple[str | int, ...] = ()

    def content(self) -> tuple[str | int, ...]:
        """Texts and indices of pictures, in order."""
        return self.parts or (*self.images, self.text)


def at_most_one(pictures: Sequence[np.ndarray], expected: str = "one, as published") -> None:
    """Of a model whose conversations hold a single picture.

    Raises:
        UsageError: there are more.
    """
    if len(pictures) > 1:
        raise UsageError(f"{len(pictures)} pictures in one conversation", expected, "ask about one picture at a time")


class TokenizerLike(Protocol):
    """The part of a tokenizer that processors need (runtime_py.tokenizer implements it)."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def token_id(self, token: str) -> int | None: ...


class ChecksConversations(Protocol):
    """The part of runtime_py.prompt.encoder.PromptEncoder that those who hold a processor need.

    Attributes:
        cuts: whether a prompt beyond the model's limit may be cut with a warning, where the published code cuts it; else
            it is refused.
        most: tokens of a prompt; a text far beyond is refused before all of it is encoded. None where it may be cut.
    """

    cuts: bool
    most: int | None

    def check(self, messages: Sequence[Message], pictures: int) -> None:
        """Raise UsageError unless the model has a form for this conversation with that many pictures."""
        ...


class Processor(Protocol):
    """A family's preprocessing and prompt; constructed as ``Processor(settings, tokenizer)``.

    ``settings`` is the JSON object the family's ``runtime_settings`` wrote to the manifest; ``tokenizer`` may be None
    where only ``images`` and ``layout`` are used (goldens bring their ids). ``prompt`` tells which conversations the model
    has a form for, before anything is prepared.
    """

    @property
    def prompt(self) -> ChecksConversations: ...

    def images(self, pictures: Sequence[np.ndarray]) -> list[ImageInputs]:
        """uint8 RGB (height, width, 3) pictures to encoder inputs."""
        ...

    def encode(self, messages: Sequence[Message], images: Sequence[ImageInputs]) -> np.ndarray:
        """Conversation to int64 (1, tokens) ids in the published prompt format, ready for the model's next answer."""
        ...

    def layout(self, input_ids: np.ndarray, images: Sequence[ImageInputs]) -> Layout:
        """Find the placeholder rows of published-form ids and work out positions and masks."""
        ...

    def next_inputs(self, layout: Layout, length: int) -> dict[str, np.ndarray]:
        """Decoder inputs, beside inputs_embeds, of the one token that enters at cache index ``length``."""
        ...


@runtime_checkable
class ReadsEmbeddings(Protocol):
    """Optional addition to `Processor`: decoder inputs that are computed from the prompt's embeddings."""

    def embedding_inputs(
        self, layout: Layout, merged: np.ndarray, raw: np.ndarray, phase: Literal["prefill", "decode"]
    ) -> dict[str, np.ndarray]:
        """Decoder inputs that hold for the whole request, by contract name.

        Called once per prompt and phase; the arrays go uncut into every prefill chunk (``prefill``) or every later
        step (``decode``). A processor that has this gives up reuse of the cache between turns.

        Args:
            merged: float32 (1, tokens, hidden), the prompt with image rows in place.
            raw: the same before the image rows were put in.
        """
        ...


@runtime_checkable
class ArrangesRows(Protocol):
    """Optional addition to `Processor`: decoder inputs that depend on which tokens enter in one call."""

    def arrange(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Turn the per-token inputs of one decoder call (cut from `Layout.decoder`, or from ``next_inputs``) into the
        inputs of the decoder's contract, e.g. a mask of image rows into the indices of those rows.
        """
        ...
