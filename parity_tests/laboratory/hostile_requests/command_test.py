"""What is told of a server that has died, and that both servers are asked the same."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.triton.configuration import config_text
from parity_tests.laboratory.hostile_requests.attempt import CLOSED, HANGS, Attempt, outcome
from parity_tests.laboratory.hostile_requests.kinds import Kinds
from parity_tests.laboratory.hostile_requests.neighbours import quiet
from parity_tests.laboratory.hostile_requests.servers import OpenAIServer, limited
from parity_tests.laboratory.hostile_requests.triton_kinds import FATAL, TritonKinds
from parity_tests.laboratory.hostile_requests.wires import DEEPEST, Wire, openai, triton
from parity_tests.laboratory.served import Served
from runtime_py.errors import UsageError
from targets.base import ModelServer


def test_a_server_that_died_is_told_and_raises_nothing(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "log"
    log.touch()
    with subprocess.Popen([sys.executable, "-c", ""], text=True) as process:
        process.wait()
        server = OpenAIServer(Served(f"http://127.0.0.1:{port}", "demo", process, log), pairs=None)  # type: ignore[arg-type]
        assert quiet(server, 60.0) == "no answer: ConnectionRefusedError"
        assert (server.open_files(), server.faults()) == (0, ["the server ended"])


def test_many_long_addresses_may_be_too_large_for_a_body() -> None:
    kinds = Kinds("demo", random.Random(0), openai())
    assert all(kinds.address().right == {"400", "413"} for _ in range(20))


def body_of(attempt: Attempt) -> Any:
    (request,) = attempt.pieces
    assert isinstance(request, bytes)
    return json.loads(request.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("make", [Kinds.wrong_type, Kinds.schema, Kinds.address, Kinds.bomb], ids=lambda make: make.__name__)
def test_triton_is_asked_what_serve_is_asked(make: Callable[[Kinds], Attempt]) -> None:
    """The same draws make the same question; its parts lie in other places."""
    sides = [Kinds("demo", random.Random(3), wire) for wire in (openai(), triton("demo"))]
    for _ in range(30):
        whole, parts = (body_of(make(side)) for side in sides)
        assert json.loads(parts["messages"]) == whole.pop("messages")
        assert parts["stream"] is (whole.pop("stream", False) is True)
        sampling = json.loads(parts["sampling_parameters"])
        assert sampling == {key: value for key, value in whole.items() if key not in ("model", "stream_options")}


def test_what_is_too_deep_for_triton_meets_our_own_reader() -> None:
    for content in (b"[" * (DEEPEST + 1), b"[" * (DEEPEST + 2)):
        assert json.loads(triton("demo").carry(content)) == {"messages": content.decode()}
    assert triton("demo").carry(b"NaN") == b"NaN"


def test_a_kind_that_ends_triton_is_sent_only_where_it_is_asked_for() -> None:
    def kinds(wire: Wire) -> Kinds:
        draw = random.Random(0)
        return Kinds("demo", draw, wire, TritonKinds("demo", draw, wire).kinds)

    all_but_one = kinds(triton("demo"))
    all_but_one.choose(None, ["framing"])
    assert {FATAL, "framing"}.isdisjoint(all_but_one.kinds) and len(all_but_one.kinds) > 10
    fatal = kinds(triton("demo"))
    fatal.choose(FATAL, [])
    assert fatal.any(7).kind == FATAL
    with pytest.raises(UsageError, match="no kind 'framings'"):
        fatal.choose("framings", [])


def test_what_triton_says_in_place_of_a_status_is_right_of_it_alone() -> None:
    assert openai().right("slow clients", frozenset({"408"})) == {"408"}
    assert triton("demo").right("slow clients", frozenset({"408"})) == {"408", HANGS}
    assert triton("demo").right("wrong types", frozenset({"413"})) == {"413", "400", CLOSED}


def test_a_connection_that_is_held_hangs() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert outcome(Attempt("held", [b"GET / HTTP/1.1\r\n\r\n"]), server.getsockname(), 0.2) == HANGS


def test_a_repository_is_given_small_limits() -> None:
    config = limited(config_text(ModelServer("KIND_CPU", ())))
    assert 'key: "max_request_mb" value: { string_value: "4" }' in config
    assert 'key: "timeout_s" value: { string_value: "60" }' in config
