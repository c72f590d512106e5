"""Requests that nobody should send: each is refused in OpenAI's form, and the server goes on answering others."""

from __future__ import annotations

import base64
import gzip
import http.client
import io
import json
import socket
import time
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from runtime_py.engine.conftest import until_nothing_is_held
from runtime_py.engine.service import Sizes
from runtime_py.model import Model
from runtime_py.serving.conftest import KEY, NAME, Server, data_url, question, running_server
from runtime_py.serving.refusal import Refusal
from runtime_py.serving.room import Reservation, Room

BEARER = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


def send(
    server: Server, body: bytes | str, headers: dict[str, str] | None = None, path: str = "/v1/chat/completions"
) -> Any:
    """Status and JSON value of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", path, body, BEARER if headers is None else headers)
    answer = connection.getresponse()
    value = json.loads(answer.read())
    connection.close()
    return answer.status, value


def ask(server: Server, **fields: Any) -> Any:
    return send(server, json.dumps({"model": NAME, "messages": question("Hello"), "max_tokens": 4, **fields}))


def still_answers(server: Server) -> None:
    status, value = ask(server)
    assert status == 200 and value["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, 400),
        (b'{"model": "demo", "model": "demo"}', 400),
        (b'{"n": 1e999}', 400),
        (b'{"seed": ' + b"9" * 5000 + b"}", 400),
        (b'{"model": "demo", "messages": "x", "stop": "\\ud800"}', 400),
        (b'{"model": "demo", "messages": [{"role": "user", "content": "a"}], "who": 1}', 400),
        (b" " * (5 << 20), 413),
    ],
)
def test_bodies_that_are_no_request(server: Server, body: bytes, status: int) -> None:
    found, value = send(server, body)
    assert found == status and set(value["error"]) == {"message", "type", "param", "code"}
    still_answers(server)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "wizard", "content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": [], "content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": "x"}]}]}, "messages[0].tool_calls"),
    ({"model": 3}, "model"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 4}, "n"),
    ({"n": True}, "n"),
    ({"stream": True, "stream_options": {"every": 1}}, "stream_options.every"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": 3, "top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream_options": 0}, "stream_options"),
    ({"stream": "yes", "stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": 0}, "stream_options"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"logit_bias": {"5": 100}}, "logit_bias"),
    ({"frequency_penalty": 1.5}, "frequency_penalty"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG)
def test_fields_of_the_wrong_kind_are_named(server: Server, fields: dict[str, Any], param: str) -> None:
    status, value = ask(server, **fields)
    assert (status, value["error"]["param"], value["error"]["type"]) == (400, param, "invalid_request_error"), value


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"n": 4}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"audio": {"voice": "a"}}, "audio"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [{"id": "x"}]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": "a", "function_call": {"name": "f"}}]}, "messages[0].function_call"),
    ],
)
def test_what_is_not_built_is_said_to_be(server: Server, fields: dict[str, Any], asked: str) -> None:
    status, value = ask(server, **fields)
    assert status == 400
    assert value["error"] == {
        "message": f"{asked} is not built here; leave it out",
        "type": "invalid_request_error",
        "param": asked,
        "code": "unsupported_parameter",
    }


def test_a_conversation_that_the_model_has_no_form_for(server: Server) -> None:
    status, value = ask(server, messages=[{"role": "assistant", "content": "I begin"}])
    assert status == 400 and value["error"]["param"] == "messages"


def bomb(width: int, height: int) -> str:
    """A PNG of so many black pixels that is a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    rows = chunk(b"IDAT", zlib.compress(b"\x00" * 1000))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(content).decode()


def cut_off() -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()[:200]).decode()


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("", 400),
        ("file:///etc/passwd", 400),
        ("/etc/passwd", 400),
        ("data:image/png;base64,", 400),
        ("data:image/png;base64,!!!!", 400),
        ("data:image/png,plain", 400),
        ("data:text/html;base64," + base64.b64encode(b"<svg/>").decode(), 400),
        (bomb(60_000, 60_000), 400),
        (bomb(2000, 600), 400),
        (cut_off(), 400),
        ("data:image/png;base64," + "A" * (3 << 20), 413),
        ("http://127.0.0.1:1/x.png", 400),
        ("https://example.com/x.png", 400),
    ],
)  # fmt: skip
def test_pictures_that_are_none(server: Server, url: str, status: int) -> None:
    found, value = ask(server, messages=question("?", url))
    assert found == status and value["error"]["message"]
    still_answers(server)


def test_one_picture_of_several_that_is_none_is_named(server: Server, picture: np.ndarray) -> None:
    whole = data_url(picture)
    _, value = ask(server, messages=question("?", whole, cut_off(), whole))
    assert value["error"]["message"].startswith("picture 2 of 3: a picture cannot be used: ")
    _, value = ask(server, messages=question("?", cut_off()))
    assert value["error"]["message"].startswith("a picture cannot be used: ")


def test_more_pictures_than_allowed(server: Server, picture: np.ndarray) -> None:
    status, value = ask(server, messages=question("?", *[data_url(picture)] * 4))
    assert (status, value["error"]["code"]) == (400, "too_many_images")


def test_pictures_that_are_too_large_together(server: Server) -> None:
    urls = [data_url(np.full((600, 700, 3), shade, dtype=np.uint8)) for shade in (1, 2, 3)]
    codes = [ask(server, messages=question("?", *urls[:count]))[1].get("error", {}).get("code") for count in (2, 3, 2)]
    assert codes == [None, "image_too_large", None], "two fit, though this model takes one"


def test_what_is_held_for_all_requests_is_bounded_and_given_back() -> None:
    room = Room(1000)
    first, second = Reservation(room, 400), Reservation(room, 400)
    first.add_bytes(300)
    first.add_picture(10, 20)
    with pytest.raises(Refusal) as full:
        second.add_bytes(101)
    assert full.value.status == 429
    second.add_bytes(100)
    with pytest.raises(Refusal) as large:
        first.add_picture(10, 21)
    assert large.value.status == 400
    for each in (first, second, first):
        each.release()
    assert room.free == 1000


def test_paths_methods_types_and_keys(server: Server) -> None:
    assert send(server, b"{}", path="/v1/../../etc/passwd")[0] == 404
    assert send(server, b"{}", path="/v1/models")[0] == 405
    assert send(server, b"{}", path="/v1/chat/completions/")[0] == 404, "no redirect"
    curls = "application/x-www-form-urlencoded"  # unless it is told another
    status, value = send(server, b"{}", {**BEARER, "Content-Type": curls})
    assert (
        status == 415
        and curls in value["error"]["message"]
        and "Content-Type: application/json" in value["error"]["message"]
    )
    body = json.dumps({"model": NAME, "messages": question("Hello"), "max_tokens": 1})
    assert send(server, body, {**BEARER, "Content-Type": "Application/JSON; charset=utf-8"})[0] == 200
    status, value = send(
        server, gzip.compress(b"{}"), {**BEARER, "Content-Type": "application/json", "Content-Encoding": "gzip"}
    )
    assert status == 415 and "'gzip'" in value["error"]["message"]
    for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
        status, value = send(server, b"{}", {"Content-Type": "application/json", **headers})
        assert (status, value["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "path", ["/v1/responses", "/v1/completions", "/chat/completions", "/v1/v1/chat/completions", "/x" * 2000]
)
def test_a_path_of_another_interface_is_told_where_questions_go(server: Server, path: str) -> None:
    status, value = send(server, b"{}", path=path)
    said = value["error"]["message"]
    assert status == 404 and path[:40] in said and len(said) < 400
    assert "POST /v1/chat/completions" in said and "ends in /v1" in said


def test_another_model_is_told_which_is_here(server: Server) -> None:
    status, value = ask(server, model="gpt-4o", messages=question("?"))
    assert status == 404 and f"'{NAME}' is" in value["error"]["message"]


SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
ANY = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=6
)
NAMES = ["messages", "stop", "seed", "top_p", "max_tokens", "response_format", "stream", "stream_options", "logprobs", "x"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(st.sampled_from(NAMES), ANY, min_size=1, max_size=3))
def test_whatever_the_fields_hold_it_is_answered_or_refused(server: Server, fields: dict[str, Any]) -> None:
    base = {"model": NAME, "messages": question("Hello"), "max_tokens": 2, "stream": False}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps({**base, **fields}), BEARER)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    assert answer.status in {200, 400}, content


def test_a_client_that_leaves_takes_its_question_with_it(server: Server) -> None:
    body = json.dumps(
        {"model": NAME, "messages": question("red " * 50), "max_tokens": 1500, "stream": True, "temperature": 2}
    )
    request = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    request += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    leaving = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(6)]
    for each in leaving:
        each.sendall(request.encode())
    time.sleep(0.2)
    for each in leaving:
        each.close()
    until_nothing_is_held(server.service)
    still_answers(server)


def test_too_many_at_a_time_and_too_long(model: Model) -> None:
    with running_server(model, Sizes(slots=1, queue=0), seconds=0.001, keys=()) as slow:
        status, value = ask(slow, max_tokens=2000, temperature=2, messages=question("red " * 100))
        assert (status, value["error"]["code"]) in {(504, "timeout"), (408, None)}
    with running_server(model, Sizes(slots=1, queue=0), keys=()) as full:
        held = full.service._tickets
        held[0] = next(iter(held.values()), None)  # type: ignore[assignment]
        status, value = ask(full)
        assert (status, value["error"]["code"]) == (429, "queue_full")
        held.clear()
        still_answers(full)
