"""The official client of OpenAI, as it is, against the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from runtime_py.engine.conftest import until_nothing_is_held
from runtime_py.engine.service import Sizes
from runtime_py.generation.generate import Overrides
from runtime_py.generation.session import Limits
from runtime_py.serving.conftest import KEY, NAME, Server, data_url, question, running_server

openai = pytest.importorskip("openai")

GREEDY: dict[str, Any] = {"model": NAME, "temperature": 0.0, "max_tokens": 12, "extra_body": {"repetition_penalty": 1.0}}
QUESTIONS = ["What is in the picture?", "How many shapes are there?", "图中有几个图形？", "Hello"]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def expected(server: Server, text: str, *pictures: np.ndarray) -> Any:
    server.model.reset()
    return server.model.chat(text, pictures, overrides=Overrides(12, temperature=0.0, repetition_penalty=1.0))


def test_the_client_lists_and_retrieves_the_one_model(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")


def test_an_answer_is_the_models_own(client: Any, server: Server, picture: np.ndarray) -> None:
    said = client.chat.completions.create(messages=question(QUESTIONS[0], data_url(picture)), **GREEDY)
    answer = expected(server, QUESTIONS[0], picture)
    choice = said.choices[0]
    assert choice.message.content == answer.text and choice.message.role == "assistant"
    assert choice.finish_reason == ("stop" if answer.finish == "stop" else "length")
    assert said.usage.prompt_tokens == answer.timing.prompt_tokens and said.usage.completion_tokens == len(answer.ids)
    again = client.chat.completions.create(messages=question(QUESTIONS[0], data_url(picture)), **GREEDY)
    assert again.choices[0].message.content == answer.text
    assert again.usage.prompt_tokens_details.cached_tokens == said.usage.prompt_tokens - 1


def test_a_stream_is_the_same_answer_with_its_usage(client: Any, picture: np.ndarray) -> None:
    messages = question(QUESTIONS[1], data_url(picture))
    whole = client.chat.completions.create(messages=messages, logprobs=True, top_logprobs=3, **GREEDY)
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            messages=messages, stream=True, stream_options=options, logprobs=True, top_logprobs=3, **GREEDY
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens and not chunks[-1].choices
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    told = [
        entry
        for chunk in chunks
        if chunk.choices and chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert [entry.token for entry in told] == [entry.token for entry in whole.choices[0].logprobs.content]
    assert len(told) == whole.usage.completion_tokens and all(len(entry.top_logprobs) == 3 for entry in told)


def test_many_clients_get_their_own_answers(client: Any, server: Server, picture: np.ndarray) -> None:
    pictures = [picture, 255 - picture, np.ascontiguousarray(picture[::-1])]
    asked = [(text, pictures[place % 3]) for place, text in enumerate(QUESTIONS * 6)]

    def ask(pair: tuple[str, np.ndarray]) -> str:
        with client.chat.completions.create(messages=question(pair[0], data_url(pair[1])), stream=True, **GREEDY) as chunks:
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    with ThreadPoolExecutor(8) as threads:
        said = list(threads.map(ask, asked))
    assert said == [expected(server, text, shown).text for text, shown in asked]


def test_several_turns_pictures_and_system(client: Any, server: Server, picture: np.ndarray) -> None:
    messages = question("What is this?", data_url(picture, "WEBP", lossless=True))
    messages += [{"role": "assistant", "content": "a circle"}, {"role": "user", "content": "What colour?"}]
    said = client.chat.completions.create(messages=messages, **GREEDY)
    assert said.choices[0].message.content == server.model.chat(
        [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
            *messages[1:],
        ],
        [picture],
        overrides=Overrides(12, temperature=0.0, repetition_penalty=1.0),
    ).text  # fmt: skip


def test_a_photograph_is_turned_upright(client: Any, server: Server, picture: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = data_url(Image.fromarray(picture), "PNG", exif=exif)
    messages = question(QUESTIONS[0], lying)
    said = client.chat.completions.create(messages=messages, logprobs=True, **GREEDY)
    turned = np.ascontiguousarray(np.rot90(picture, -1))
    upright, flat = (
        client.chat.completions.create(messages=question(QUESTIONS[0], data_url(shown)), logprobs=True, **GREEDY)
        for shown in (turned, picture)
    )

    def told(answer: Any) -> list[float]:
        return [entry.logprob for entry in answer.choices[0].logprobs.content]

    assert told(said) == pytest.approx(told(upright), abs=1e-4)
    assert told(said) != pytest.approx(told(flat), abs=1e-4)


def test_seeds_stops_and_limits(client: Any) -> None:
    def ask(**changes: Any) -> Any:
        messages = question("What is in the picture, and where?")
        return client.chat.completions.create(**{**GREEDY, "messages": messages, **changes}).choices[0]

    free = {"temperature": 1.9, "top_p": 1.0, "extra_body": {"top_k": 0}}
    every = {**free, "extra_body": {"top_k": -1}}  # as vLLM writes it
    assert ask(seed=3, **free).message.content == ask(seed=3, **free).message.content == ask(seed=3, **every).message.content
    assert len({ask(seed=seed, **free).message.content for seed in range(5)}) > 1
    assert ask(seed=-7, **free).message.content == ask(seed=-7, **free).message.content
    whole = ask(max_tokens=40).message.content
    stop = whole[3:6]
    cut = ask(max_tokens=40, stop=[stop, "never"])
    assert cut.message.content == whole[: whole.index(stop)].strip() and cut.finish_reason == "stop"
    one = ask(max_completion_tokens=1)
    assert one.finish_reason in {"length", "stop"} and len(one.message.content) < len(whole)


def test_json_of_a_schema(client: Any, picture: np.ndarray) -> None:
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "round": {"type": "boolean"}},
        "required": ["colour", "round"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "shape", "schema": schema}}
    for temperature in (0.0, 1.5):
        asked = {**GREEDY, "temperature": temperature, "max_tokens": 60, "seed": 1}
        said = client.chat.completions.create(messages=question("?", data_url(picture)), response_format=wanted, **asked)
        value = json.loads(said.choices[0].message.content)
        assert value["colour"] in {"red", "blue"} and isinstance(value["round"], bool)
        assert said.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_breaks_an_answer_off_is_told_so(client: Any, server: Server, stream: bool) -> None:
    pytest.importorskip("llguidance")
    forms = [{"type": "object", "properties": {f"k{i}{j}": {"type": "string"} for j in range(30)}} for i in range(60)]
    wanted = {"name": "x", "schema": {"type": "array", "items": {"anyOf": forms}, "minItems": 1}}
    with pytest.raises(openai.APIError, match="could not be followed further") as caught:
        said = client.chat.completions.create(
            messages=question("?"), stream=stream, response_format={"type": "json_schema", "json_schema": wanted}, **GREEDY
        )
        list(said)
    assert caught.value.param == "response_format" and caught.value.type == "invalid_request_error"
    until_nothing_is_held(server.service)


def test_an_answer_without_an_end_ends_where_its_schema_does(client: Any) -> None:
    pytest.importorskip("llguidance")
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["red", "blue"]}}}
    asked = {**GREEDY, "extra_body": {"ignore_eos": True}}
    said = client.chat.completions.create(messages=question("?"), response_format=wanted, **asked).choices[0]
    assert json.loads(said.message.content) in {"red", "blue"} and said.finish_reason == "stop"


def test_errors_arrive_as_the_clients_own(client: Any, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = question("?")
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.chat.completions.create(model="gpt", messages=messages)
    with pytest.raises(openai.BadRequestError, match="tools is not built"):
        client.chat.completions.create(
            messages=messages, tools=[{"type": "function", "function": {"name": "a", "parameters": {}}}], **GREEDY
        )
    call = {"id": "1", "type": "function", "function": {"name": "a", "arguments": "{}"}}
    called = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": ""},
    ]
    with pytest.raises(openai.BadRequestError, match=r"messages\[1\].tool_calls is not built here"):
        client.chat.completions.create(messages=[*messages, *called], **GREEDY)
    with pytest.raises(openai.BadRequestError, match="more than") as caught:
        client.chat.completions.create(messages=question("red " * 1_000_000), **GREEDY)
    assert caught.value.code == "context_length_exceeded"
    monkeypatch.setattr(server.service._preparation.session, "limits", Limits(64, 64))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(messages=question("red " * 300), **GREEDY)
    assert caught.value.code == "context_length_exceeded"
    monkeypatch.undo()
    # the published code cuts the end of such a question off
    prompt: Any = server.service.processor.prompt
    monkeypatch.setattr(prompt, "form", replace(prompt.form, limit=64, cuts=True))
    with pytest.raises(openai.BadRequestError, match="at most 64") as caught:
        client.chat.completions.create(messages=question("red " * 300), **GREEDY)
    assert caught.value.code == "context_length_exceeded"
    other = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with other, pytest.raises(openai.AuthenticationError):
        other.models.list()


def test_what_took_too_long_is_not_asked_again(server: Server) -> None:
    """The client asks again by itself after most errors of a server."""
    with (
        running_server(server.model, Sizes(slots=1, queue=0), seconds=0.3, keys=()) as slow,
        openai.OpenAI(base_url=f"{slow.url}/v1", api_key="none", max_retries=2) as client,
    ):
        asked = {**GREEDY, "max_tokens": 1900, "extra_body": {"ignore_eos": True}}
        with pytest.raises(openai.InternalServerError) as late:
            client.chat.completions.create(messages=question("Hello"), **asked)
        assert (late.value.status_code, late.value.code) == (504, "timeout")
        with urlopen(f"{slow.url}/metrics", timeout=60) as answer:
            assert b'requests_total{outcome="timeout"} 1.0' in answer.read()
