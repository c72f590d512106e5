"""The body of a chat completion request, read and checked field by field: `ChatRequest`.

Source of the fields: openai/openai-openapi, CreateChatCompletionRequest. What is not built is refused by name, so that no
caller believes it was obeyed; fields that change no answer are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime_py.files.json_file import shortened
from runtime_py.generation.generate import Overrides
from runtime_py.preprocess.base import Message
from runtime_py.serving.refusal import invalid

PASSED_OVER = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
)
ONLY: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
}
"""Fields that are not built, and the values by which nothing is asked for."""

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

MAX_STOPS, MAX_STOP_LENGTH, MAX_TOP_LOGPROBS = 16, 256, 20


@dataclass(frozen=True)
class ChatRequest:
    """One question.

    Attributes:
        urls: of the pictures, in the order in which the turns' indices count.
        schema: the JSON schema that the answer must have; None for plain text.
        logprobs: how many of the likeliest tokens are told at every token; None for no logprobs at all.
        usage: a stream ends with a chunk that counts tokens.
        token_ids: logprobs call a token ``token_id:NUMBER``, as vLLM does when asked for ``return_tokens_as_token_ids``.
    """

    model: str
    turns: tuple[Message, ...]
    urls: tuple[str, ...]
    overrides: Overrides
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    stream: bool = False
    usage: bool = False
    token_ids: bool = False
    schema: Mapping[str, Any] | None = field(default=None, repr=False)


def read(body: Any, max_pictures: int) -> ChatRequest:
    """A request's JSON value as a `ChatRequest`.

    Raises:
        Refusal: a field is missing, of the wrong type or range, or asks for what is not built.
    """
    if not isinstance(body, dict):
        raise invalid("the body is no JSON object")
    fields = _Fields({name: value for name, value in body.items() if value is not None})
    for name, allowed in ONLY.items():
        value = fields.take(name)
        if value is not None and value not in allowed:
            raise invalid(f"{name} is not built here; leave it out", name, "unsupported_parameter")
    for name in PASSED_OVER:
        fields.take(name)
    model = fields.typed("model", str, "a text")
    if model is None:
        raise invalid("model is missing; GET /v1/models tells its name", "model")
    turns, urls = _messages(fields.take("messages"), max_pictures)
    top = fields.whole("top_logprobs", 0, MAX_TOP_LOGPROBS)
    told = fields.typed("logprobs", bool, "true or false") or False
    if top is not None and not told:
        raise invalid("top_logprobs is given without logprobs true", "top_logprobs")
    stream = fields.typed("stream", bool, "true or false") or False
    options = fields.typed("stream_options", dict, "an object") or {}
    if options and not stream:
        raise invalid("stream_options is given without stream true", "stream_options")
    request = ChatRequest(
        model=model,
        turns=turns,
        urls=urls,
        overrides=_overrides(fields),
        stops=_stops(fields.take("stop")),
        logprobs=(top or 0) if told else None,
        stream=stream,
        usage=bool(options.get("include_usage", False)),
        token_ids=fields.typed("return_tokens_as_token_ids", bool, "true or false") or False,
        schema=_schema(fields.take("response_format")),
    )
    fields.refuse_rest()
    return request


class _Fields:
    """The fields of an object that were not looked at yet."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def take(self, name: str) -> Any:
        return self._values.pop(name, None)

    def typed(self, name: str, kind: type, wanted: str) -> Any:
        value = self.take(name)
        if value is not None and not isinstance(value, kind):
            raise invalid(f"{name} is {shortened(value)}; {wanted} is expected", name)
        return value

    def number(self, name: str, fits: Callable[[float], bool], wanted: str) -> float | None:
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
            raise invalid(f"{name} is {shortened(value)}; {wanted} is expected", name)
        return float(value)

    def whole(self, name: str, least: int, most: int) -> int | None:
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise invalid(f"{name} is {shortened(value)}; a whole number from {least} to {most} is expected", name)
        return value

    def refuse_rest(self) -> None:
        if self._values:
            name = min(self._values)
            raise invalid(f"{shortened(name)} is no field that is known here", name[:64], "unknown_parameter")


def _overrides(fields: _Fields) -> Overrides:
    many = (1 << 31) - 1
    older, newer = fields.whole("max_tokens", 1, many), fields.whole("max_completion_tokens", 1, many)
    return Overrides(
        max_new_tokens=older if newer is None else newer,
        temperature=fields.number("temperature", lambda value: 0 <= value <= 2, "a number from 0 to 2"),
        top_p=fields.number("top_p", lambda value: 0 < value <= 1, "a number above 0 and up to 1"),
        top_k=fields.whole("top_k", 0, many),
        repetition_penalty=fields.number("repetition_penalty", lambda value: 0 < value <= 10, "a number above 0, up to 10"),
        seed=_seed(fields),
        stop_ids=() if fields.typed("ignore_eos", bool, "true or false") else None,
    )


def _seed(fields: _Fields) -> int | None:
    """Negative ones are seeds like any other in OpenAI's interface, and none in ours."""
    seed = fields.whole("seed", -(1 << 63), (1 << 63) - 1)
    return None if seed is None else seed % (1 << 64)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    fits = isinstance(stops, list) and len(stops) <= MAX_STOPS
    if not fits or not all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_LENGTH for stop in stops):
        raise invalid(f"stop is {shortened(value)}; a text or up to {MAX_STOPS} of them are expected", "stop")
    return tuple(stops)


def _schema(value: Any) -> Mapping[str, Any] | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if value is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    schema = value.get("json_schema") if isinstance(value, dict) else None
    if kind != "json_schema" or not isinstance(schema, dict) or not isinstance(schema.get("schema"), dict):
        raise invalid(
            'response_format is not {"type": "text"}, {"type": "json_object"} or '
            '{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}',
            "response_format",
        )
    inner: Mapping[str, Any] = schema["schema"]
    return inner


def _messages(value: Any, max_pictures: int) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    if not isinstance(value, list) or not value:
        raise invalid("messages is no list of at least one message", "messages")
    urls: list[str] = []
    turns = tuple(_turn(row, f"messages[{place}]", urls, max_pictures) for place, row in enumerate(value))
    return turns, tuple(urls)


def _turn(row: Any, where: str, urls: list[str], max_pictures: int) -> Message:
    role = row.get("role") if isinstance(row, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{where} has no role that is known here: {', '.join(ROLES)}", where)
    if row.get("tool_calls") or row.get("function_call"):
        raise invalid(f"{where} calls tools, which are not built here", where, "unsupported_parameter")
    speaker, content = ROLES[role], row.get("content")
    if isinstance(content, str):
        return Message(speaker, content)
    if not isinstance(content, list) or not content:
        raise invalid(f"{where}.content is neither text nor a list of parts", f"{where}.content")
    parts = tuple(_part(part, f"{where}.content[{place}]", urls, max_pictures) for place, part in enumerate(content))
    texts = [part for part in parts if isinstance(part, str)]
    return Message(speaker, "\n".join(texts), tuple(part for part in parts if isinstance(part, int)), parts)


def _part(part: Any, where: str, urls: list[str], max_pictures: int) -> str | int:
    """A text, or the index of a picture, whose URL joins ``urls``."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        if not isinstance(url, str):
            raise invalid(f"{where}.image_url has no url", where)
        if len(urls) == max_pictures:
            raise invalid(f"more than {max_pictures} pictures in one request", "messages", "too_many_images")
        urls.append(url)
        return len(urls) - 1
    raise invalid(
        f'{where} is neither {{"type": "text", "text": ...}} nor {{"type": "image_url", "image_url": {{"url": ...}}}}', where
    )
