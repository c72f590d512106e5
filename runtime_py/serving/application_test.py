"""What is said beside answers: headers, the facts of the model, the state of the server, and its own faults."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

import pytest

pytest.importorskip("starlette")

from runtime_py.engine.service import Sizes
from runtime_py.serving.conftest import KEY, NAME, Server, question
from runtime_py.version import VERSION

BEARER = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


def asked(server: Server, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any, bytes]:
    """Status, headers and content of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    method = "GET" if body is None else "POST"
    connection.request(method, path, None if body is None else json.dumps(body), BEARER if headers is None else headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def chat(server: Server, **fields: Any) -> tuple[int, Any, bytes]:
    return asked(server, "/v1/chat/completions", {"model": NAME, "messages": question("Hello"), "max_tokens": 2, **fields})


def test_a_stream_is_neither_kept_nor_held_back(server: Server) -> None:
    status, headers, content = chat(server, stream=True)
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")
    first, *_, last, nothing = content.split(b"\n\n")
    assert json.loads(first.removeprefix(b"data: "))["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (last, nothing) == (b"data: [DONE]", b"")


def test_a_stream_that_cannot_begin_is_an_error_and_no_stream(server: Server) -> None:
    status, headers, content = chat(server, stream=True, max_tokens=0)
    assert (status, headers["content-type"]) == (400, "application/json")
    assert json.loads(content)["error"]["param"] == "max_tokens"


def test_refusals_tell_how_to_go_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    status, headers, _ = asked(server, "/v1/models", headers={})
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    status, headers, _ = asked(server, "/v1/models", {})
    assert (status, set(headers["allow"].split(", "))) == (405, {"GET", "HEAD"})
    monkeypatch.setattr(server.service, "sizes", Sizes(slots=4, queue=0))
    monkeypatch.setattr(server.service, "_tickets", dict.fromkeys(range(4)))  # as many as there are slots
    status, headers, content = chat(server)
    assert (status, headers["retry-after"], json.loads(content)["error"]["code"]) == (429, "1", "queue_full")


def test_a_body_that_says_that_it_is_too_large_is_not_waited_for(server: Server) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {(4 << 20) + 1}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("bearer", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER  {KEY} "])
def test_a_bearer_is_one_in_any_case(server: Server, bearer: str) -> None:
    assert asked(server, "/v1/models", headers={"Authorization": bearer})[0] == 200


def test_the_models_facts_are_the_packages(server: Server) -> None:
    package = server.model.package
    (facts,) = json.loads(asked(server, "/v1/models")[2])["data"]
    assert facts == json.loads(asked(server, f"/v1/models/{NAME}")[2])
    assert facts == {
        "id": NAME,
        "object": "model",
        "created": 0,
        "owned_by": "edgeproof",
        "family": package.family,
        "variant": package.variant,
        "target": "cpu",
        "precision": "fp32",
        "bytes": package.size,
        "max_model_len": package.limits.context,
        "max_images": 1,
        "max_image_bytes": 1 << 20,
        "licence": package.manifest["licence"]["name"],
        "manifest": f"sha256:{package.fingerprint}",
        "verification": "not run",
        "waivers": 1,
    }


def test_the_state_is_what_is_so_now(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = server.service.engine
    state = {
        "status": "ok", "model": NAME, "edgeproof": VERSION, "slots": 4, "busy": 0, "queued": 0, "notice": None,
        "key_needed": True,
    }  # fmt: skip
    assert json.loads(asked(server, "/health", headers={})[2]) == state
    monkeypatch.setattr(type(engine), "busy", 3)
    monkeypatch.setattr(type(engine), "queued", 2)
    monkeypatch.setattr(engine, "notice", "one after the other")
    now = json.loads(asked(server, "/health", headers={})[2])
    assert now == state | {"busy": 3, "queued": 2, "notice": "one after the other"}


def test_a_fault_of_the_server_is_one_to_its_client(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise ZeroDivisionError("what nobody should read")

    monkeypatch.setattr(server.service, "ask", fails)
    status, headers, content = chat(server)
    assert (status, headers["content-type"]) == (500, "application/json")
    said = {"message": "a fault of the server (ZeroDivisionError)", "type": "server_error", "param": None, "code": None}
    assert json.loads(content) == {"error": said}
    monkeypatch.undo()
    assert chat(server)[0] == 200
