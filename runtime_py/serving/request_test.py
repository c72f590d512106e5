"""The fields of a request, as what is asked of the engine."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("starlette")

from runtime_py.generation.generate import Overrides
from runtime_py.preprocess.base import Message
from runtime_py.serving import request
from runtime_py.serving.refusal import Refusal


def read(**fields: Any) -> request.ChatRequest:
    return request.read({"model": "demo", "messages": [{"role": "user", "content": "Hello"}], **fields}, 3)


@pytest.mark.parametrize(
    ("fields", "overrides"),
    [
        ({}, Overrides()),
        ({"max_tokens": 5}, Overrides(max_new_tokens=5)),
        ({"max_tokens": 5, "max_completion_tokens": 6}, Overrides(max_new_tokens=6)),
        ({"temperature": 0}, Overrides(temperature=0.0)),
        ({"top_p": 0.25}, Overrides(top_p=0.25)),
        ({"top_k": 7}, Overrides(top_k=7)),
        ({"top_k": -1}, Overrides(top_k=0)),
        ({"repetition_penalty": 1.5}, Overrides(repetition_penalty=1.5)),
        ({"seed": 11}, Overrides(seed=11)),
        ({"seed": -1}, Overrides(seed=2**64 - 1)),
        ({"ignore_eos": True}, Overrides(stop_ids=())),
        ({"temperature": None, "top_p": None, "top_k": None, "seed": None}, Overrides()),
    ],
    ids=str,
)
def test_sampling_is_what_its_fields_say(fields: dict[str, Any], overrides: Overrides) -> None:
    assert read(**fields).overrides == overrides


@pytest.mark.parametrize(
    ("fields", "logprobs"),
    [({}, None), ({"logprobs": False}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 4}, 4)],
)
def test_logprobs_are_told_where_they_are_asked_for(fields: dict[str, Any], logprobs: int | None) -> None:
    assert read(**fields).logprobs == logprobs


def test_what_a_request_leaves_out_is_not_asked_for() -> None:
    plain = read()
    assert (plain.stops, plain.stream, plain.usage, plain.token_ids, plain.schema) == ((), False, False, False, None)
    asked = read(stop="end", stream=True, stream_options={"include_usage": True}, return_tokens_as_token_ids=True)
    assert (asked.stops, asked.stream, asked.usage, asked.token_ids) == (("end",), True, True, True)
    assert not read(stream=True, stream_options={}).usage
    assert read(stop=["a", "b"]).stops == ("a", "b")


def test_null_is_as_good_as_leaving_a_field_out() -> None:
    """Whether the field is known or not: clients send every field that they have."""
    optional = request.schema().root["properties"].keys() - {"model", "messages"}
    assert read(**dict.fromkeys(optional), no_such=None) == read()
    assert read(stream=True, stream_options={"include_usage": True, "no_such": None}).usage
    with pytest.raises(Refusal, match=r"stream_options\.no_such: not expected here"):
        read(stream=True, stream_options={"no_such": 1})


def test_every_field_that_is_not_built_is_one_that_the_schema_knows() -> None:
    """Under another name its refusal would speak of values, and not of what is not built."""
    fields = request.schema().root["properties"]
    assert fields.keys() >= request.NOT_BUILT
    nothing = {
        "type",
        "enum",
        "maxItems",
        "maxProperties",
    }  # rules by which a field takes what asks for nothing, and no more
    assert {name for name, rule in fields.items() if rule.keys() <= nothing} <= request.NOT_BUILT


@pytest.mark.parametrize(
    ("body", "message", "param", "code"),
    [
        ([], "the body: a list is no object", None, None),
        ({"messages": "x"}, "model is missing; GET /v1/models tells its name", "model", None),
        ({"model": 1, "messages": "x"}, "model: 1 is no string; GET /v1/models tells its name", "model", None),
        ({"model": "a", "messages": [], "min_p": 1}, "messages: 0 items, not at least 1", "messages", None),
        (
            {"model": "a", "messages": [{"role": "user", "content": "x"}], "min_p": 1},
            "min_p: not expected here; leave it out",
            "min_p",
            "unknown_parameter",
        ),
        (
            {"model": "a", "messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0]: an object of the type 'text' is not ",
            "messages[0].content[0]",
            None,
        ),
    ],
)
def test_a_refusal_says_what_and_where(body: Any, message: str, param: str | None, code: str | None) -> None:
    with pytest.raises(Refusal) as refused:
        request.read(body, 3)
    assert refused.value.message.startswith(message), refused.value.message
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, param, code)


@pytest.mark.parametrize("name", sorted(request.NOT_BUILT))
def test_what_is_not_built_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(Refusal, match=f"^{name} is not built here") as refused:
        read(**{name: {"asked": "for"}})
    assert (refused.value.param, refused.value.code) == (name, "unsupported_parameter")


def test_turns_hold_texts_and_pictures_in_their_order() -> None:
    parts = [
        {"type": "text", "text": "before"},
        {"type": "image_url", "image_url": {"url": "data:1"}},
        {"type": "image_url", "image_url": "data:2"},
        {"type": "text", "text": "after"},
    ]
    picture = {"type": "image_url", "image_url": {"url": "data:3"}}
    asked = read(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": [picture]},
        ]
    )
    assert asked.turns == (
        Message("system", "Be brief."),
        Message("user", "before\nafter", (0, 1), ("before", 0, 1, "after")),
        Message("assistant", "Yes."),
        Message("user", "", (2,), (2,)),
    )
    assert asked.urls == ("data:1", "data:2", "data:3")
    with pytest.raises(Refusal, match="more than 3 pictures") as refused:
        read(messages=[{"role": "user", "content": [picture] * 4}])
    assert (refused.value.param, refused.value.code) == ("messages", "too_many_images")


@pytest.mark.parametrize(
    ("wanted", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}, {"type": "array"}),
    ],
)
def test_an_answer_has_the_schema_that_is_asked_for(wanted: dict[str, Any], schema: dict[str, Any] | None) -> None:
    assert read(response_format=wanted).schema == schema
