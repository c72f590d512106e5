"""The body of a chat completion request, held against its schema and read: `ChatRequest`.

Source of the fields: openai/openai-openapi, CreateChatCompletionRequest. What is not built is refused by name, so that no
caller believes it was obeyed; fields that change no answer are passed over. The schema is what ``/openapi.json`` shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime_py.files.schema import THE_VALUE, Schema, load
from runtime_py.generation.generate import Overrides
from runtime_py.preprocess.base import Message
from runtime_py.serving.refusal import Refusal, invalid

PLACE_LENGTH = 64

NOT_BUILT = frozenset(
    {
        "n",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "tools",
        "functions",
        "tool_choice",
        "function_call",
        "modalities",
        "audio",
        "prediction",
        "web_search_options",
        "reasoning_effort",
        "verbosity",
    }
)
"""Fields that are not built: the schema takes the values by which nothing is asked for."""

SPEAKERS = {"developer": "system"}
"""Roles that are another's."""

_OF_TOOLS = re.compile(r"messages\[\d+\]\.(tool_calls|function_call)\b")
_MISSING = re.compile(r"(?P<place>.+): the key '(?P<key>\w+)' is missing")


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


def schema() -> Schema:
    """What a request's JSON value must be (``runtime_py/files/schemas/chat_request.schema.json``)."""
    return load("chat_request")


def read(body: Any, max_pictures: int) -> ChatRequest:
    """A request's JSON value as a `ChatRequest`.

    Raises:
        Refusal: a field is missing, of the wrong type or range, or asks for what is not built.
    """
    given: dict[str, Any] = {}
    if isinstance(body, dict):
        given = {name: value for name, value in body.items() if value is not None}
    _check_pairs(given)  # the schema says the same, in one form of many that fits no better than the others
    problems = schema().problems(body)
    if problems:  # a message that calls tools has no content, which is not what is wrong with it
        raise _refusal(next(filter(_OF_TOOLS.match, problems), problems[0]))
    urls: list[str] = []
    turns = tuple(_turn(row, urls) for row in given["messages"])
    if len(urls) > max_pictures:
        raise invalid(f"more than {max_pictures} pictures in one request", "messages", "too_many_images")
    stop = given.get("stop", ())
    return ChatRequest(
        model=given["model"],
        turns=turns,
        urls=tuple(urls),
        overrides=_overrides(given),
        stops=(stop,) if isinstance(stop, str) else tuple(stop),
        logprobs=given.get("top_logprobs", 0) if given.get("logprobs") else None,
        stream=given.get("stream", False),
        usage=bool(given.get("stream_options", {}).get("include_usage")),
        token_ids=given.get("return_tokens_as_token_ids", False),
        schema=_answer_schema(given.get("response_format", {})),
    )


def _check_pairs(given: Mapping[str, Any]) -> None:
    if "top_logprobs" in given and given.get("logprobs") is not True:
        raise invalid("top_logprobs is given without logprobs true", "top_logprobs")
    if given.get("stream_options", {}) != {} and given.get("stream") is not True:
        raise invalid("stream_options is given without stream true", "stream_options")


def _refusal(problem: str) -> Refusal:
    """A line of `Schema.problems` in OpenAI's form."""
    place, _, what = problem.partition(": ")
    if missing := _MISSING.fullmatch(problem):
        place = missing["key"] if place == THE_VALUE else f"{place}.{missing['key']}"
        problem = f"{place} is missing"
    elif place == THE_VALUE:
        return invalid(f"the body: {what}")
    field = re.split(r"[.\[]", place, maxsplit=1)[0]
    of_tools = _OF_TOOLS.match(place)
    if of_tools or field in NOT_BUILT:
        asked = of_tools[0] if of_tools else field
        return invalid(f"{asked} is not built here; leave it out", asked, "unsupported_parameter")
    unknown = field not in schema().root["properties"]
    hint = "; GET /v1/models tells its name" if place == "model" else "; leave it out" if unknown else ""
    return invalid(f"{problem}{hint}", place[:PLACE_LENGTH], "unknown_parameter" if unknown else None)


def _overrides(given: Mapping[str, Any]) -> Overrides:
    most = given.get("max_completion_tokens", given.get("max_tokens"))
    seed = given.get("seed")
    return Overrides(
        max_new_tokens=most,
        temperature=_number(given, "temperature"),
        top_p=_number(given, "top_p"),
        top_k=max(given["top_k"], 0) if given.get("top_k") is not None else None,  # vLLM writes all as -1
        repetition_penalty=_number(given, "repetition_penalty"),
        seed=None if seed is None else seed % (1 << 64),  # negative ones are seeds too in OpenAI's interface, none in ours
        stop_ids=() if given.get("ignore_eos") else None,
    )


def _number(given: Mapping[str, Any], name: str) -> float | None:
    return None if name not in given else float(given[name])


def _answer_schema(wanted: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if wanted.get("type") == "json_object":
        return {"type": "object"}
    if wanted.get("type") == "json_schema":
        inner: Mapping[str, Any] = wanted["json_schema"]["schema"]
        return inner
    return None


def _turn(row: Mapping[str, Any], urls: list[str]) -> Message:
    """A message; the URLs of its pictures join ``urls``."""
    speaker, content = SPEAKERS.get(row["role"], row["role"]), row["content"]
    if isinstance(content, str):
        return Message(speaker, content)
    parts = tuple(_part(part, urls) for part in content)
    texts = [part for part in parts if isinstance(part, str)]
    return Message(speaker, "\n".join(texts), tuple(part for part in parts if isinstance(part, int)), parts)


def _part(part: Mapping[str, Any], urls: list[str]) -> str | int:
    """A text, or the index of a picture, whose URL joins ``urls``."""
    if part["type"] == "text":
        return str(part["text"])
    address = part["image_url"]
    urls.append(address if isinstance(address, str) else address["url"])
    return len(urls) - 1
