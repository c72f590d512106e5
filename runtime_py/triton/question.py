"""The tensors of a request as a question.

Two ways lead in: ``text_input`` with pictures in ``image``, as Triton's vLLM backend has them
(triton-inference-server/vllm_backend, docs/additional_outputs.md and README), or ``messages``, the JSON of OpenAI's chat
interface with pictures as data URLs. ``sampling_parameters`` is a JSON object of OpenAI's fields (``max_tokens``,
``temperature``, ``stop`` ...); those that are no lists may stand among the request's own parameters too, where Triton's
``generate`` puts what is no input. Everything is read by `runtime_py.serving`, so that both servers refuse the same.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.engine.service import Question, Service
from runtime_py.errors import UsageError
from runtime_py.files.json_file import parse_json
from runtime_py.serving import request
from runtime_py.serving.pictures import (
    BASE64_SPACES,
    PictureLimits,
    base64_exceeds,
    decoded,
    of_base64,
    picture_at,
    too_many_bytes,
)
from runtime_py.serving.question import Questions
from runtime_py.serving.refusal import Refusal, invalid
from runtime_py.serving.room import Reservation

TEXT, MESSAGES, IMAGE, SAMPLING, STREAM = "text_input", "messages", "image", "sampling_parameters", "stream"
INPUTS = (TEXT, MESSAGES, IMAGE, SAMPLING, STREAM)
OWN = ("model", "messages", "stream", "stream_options")
"""Fields of OpenAI's body that other tensors give."""

NOT_OURS = re.compile(r"id$|triton_|.*-|traceparent$|tracestate$", re.ASCII)
"""Parameters of a request that ask nothing of a model: its name, Triton's own, and headers that it was told to forward."""

_TEXT = frozenset(range(32, 127)) | frozenset(BASE64_SPACES)
_NETPBM = re.compile(rb"P.\s")
"""PPM and its kin: the only picture files that may begin with text."""

PLACE = "image:"
"""Stands for the URL of a picture that came as a tensor."""


@dataclass(frozen=True)
class Tensors:
    """The inputs of a request, copied out of Triton's memory: bytes of strings, in order; ``stream`` as a truth value;
    ``parameters`` as the request itself has them.
    """

    strings: Mapping[str, Sequence[bytes]]
    stream: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(len(value) for values in self.strings.values() for value in values)

    def one(self, name: str) -> bytes | None:
        """The single value of an input; None where it is not given or empty.

        Raises:
            Refusal: it has several.
        """
        values = self.strings.get(name) or ()
        if len(values) > 1:
            raise invalid(f"{name} has {len(values)} values; one is expected", name)
        return (values[0] or None) if values else None


class Reader:
    """Reads the requests of one service.

    Args:
        limits: of pictures; request_bytes: of all tensors of a request together.
    """

    def __init__(self, service: Service, limits: PictureLimits, request_bytes: int) -> None:
        self._limits, self._request_bytes = limits, request_bytes
        self._questions = Questions(service, limits)

    def read(self, tensors: Tensors, held: Reservation) -> Question:
        """A request as a question.

        Args:
            held: grows by what the request takes until it is being answered.

        Raises:
            Refusal: a tensor is missing, too large, or asks for what is not built.
            UsageError: the model has no form for it.
        """
        if tensors.nbytes > self._request_bytes:
            raise Refusal(413, f"the request is larger than {self._request_bytes:,} bytes", code="request_too_large")
        held.add_bytes(tensors.nbytes)
        images = list(tensors.strings.get(IMAGE) or ())
        asked = request.read(self._body(tensors, len(images)), self._limits.count)
        if images:
            return self._questions.of(asked, held, images, picture_of)
        return self._questions.of(asked, held, asked.urls, picture_at)

    def _body(self, tensors: Tensors, images: int) -> dict[str, Any]:
        """The same as OpenAI's interface has it."""
        sampling = _json(tensors.one(SAMPLING), SAMPLING)
        if not isinstance(sampling, dict | None):
            raise invalid(f"{SAMPLING} is no JSON object", SAMPLING)
        beside = {name: value for name, value in tensors.parameters.items() if not NOT_OURS.match(name)}
        sampling = {name: value for name, value in (sampling or {}).items() if value is not None}
        twice = sorted(beside.keys() & sampling.keys())
        if twice:
            raise invalid(f"{twice[0]} is given in {SAMPLING} and beside it", SAMPLING)
        sampling = beside | sampling
        own = [name for name in OWN if name in sampling]
        if own:
            raise invalid(f"{own[0]} is given as a parameter; it is an input of its own, or the model's name", SAMPLING)
        if sampling.get("logprobs"):
            raise invalid("logprobs are not sent here; ask the OpenAI server (edgeproof serve)", SAMPLING)
        text, messages = tensors.one(TEXT), tensors.one(MESSAGES)
        if (text is None) == (messages is None):
            raise invalid(f"one of {TEXT} and {MESSAGES} is expected", TEXT)
        if messages is not None:
            if images:
                raise invalid(f"{IMAGE} is given beside {MESSAGES}, whose pictures are data URLs in it", IMAGE)
            return {"model": "", "messages": _json(messages, MESSAGES), **sampling}
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": f"{PLACE}{index}"}} for index in range(images)
        ]
        parts.append({"type": "text", "text": _text(text or b"", TEXT)})
        return {"model": "", "messages": [{"role": "user", "content": parts}], **sampling}


def picture_of(content: bytes, limits: PictureLimits) -> np.ndarray:
    """A picture as it came, a data URL, the file itself, or its base64 (JSON has no bytes): uint8 RGB (height, width, 3).

    Raises:
        Refusal: it is none of these, or too large.
    """
    if content[:5].lower() == b"data:":
        return picture_at(_text(content, IMAGE), limits)
    if content and _TEXT.issuperset(content[:64]) and not _NETPBM.match(content):
        if base64_exceeds(content, limits.bytes):
            raise too_many_bytes(limits, IMAGE)
        try:
            content = of_base64(content)
        except (binascii.Error, ValueError) as error:
            raise invalid(f"{IMAGE} is neither a picture's file nor its base64: {error}", IMAGE) from error
    if len(content) > limits.bytes:
        raise too_many_bytes(limits, IMAGE)
    return decoded(content, limits)


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(f"{name} is no UTF-8: {error}", name) from error


def _json(content: bytes | None, name: str) -> Any:
    if content is None:
        return None
    try:
        return parse_json(content, Path(name), UsageError, "send JSON")
    except UsageError as error:
        raise invalid(f"{error.what}; {error.expected} is expected", name, "invalid_json") from error


def usage_text(usage: Mapping[str, Any]) -> bytes:
    """Counts of tokens as the ``usage`` output has them."""
    return json.dumps(usage, separators=(",", ":")).encode()
