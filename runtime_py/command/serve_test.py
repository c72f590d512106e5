"""``serve`` as a process: it says where it is, answers, and ends with 0 when told to."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime_py.command.bench_server import Load, lines, measure
from runtime_py.command.cli import main
from runtime_py.errors import EdgeproofError, UsageError
from runtime_py.serving.client import Client, user_message

ROOT = Path(__file__).parents[2]
HALF = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"


def test_a_server_from_start_to_end(exported: Path, tmp_path: Path, picture: np.ndarray) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    keys = tmp_path / "keys"
    keys.write_text("first\n\nsecond\n")
    command = [sys.executable, "-m", "runtime_py", "serve", "-p", str(exported), "--port", "0", "--threads", "1"]
    command += ["--slots", "2", "--model-name", "a/model", "--api-key-file", str(keys)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            match = re.search(r"serving a/model at (http://127\.0\.0\.1:\d+)/v1 with 2 slots", said)
            assert match, said
            body = {"model": "a/model", "messages": user_message("What colour?", [picture]), "max_tokens": 4}
            assert Client(match[1], "second").complete(body)["choices"][0]["message"]["role"] == "assistant"
            with pytest.raises(UsageError, match="401"):
                Client(match[1], "third").complete(body)
            figures = measure(Load(match[1], "first", (1, 2), requests=3, new_tokens=5, side=28))
            assert [level["tokens"] for level in figures["levels"]] == [15, 15]
            assert all(level["first_token_seconds"]["p95"] > 0 for level in figures["levels"])
            assert all(0 < level["beside_the_decoder"] < 1 for level in figures["levels"])
            assert len(lines(figures)) == 4
            long = {**body, "max_tokens": 150, "ignore_eos": True, "logprobs": True}
            chunks = Client(match[1], "first").stream(long)
            told = [next(chunks), next(chunks)]
        finally:
            process.send_signal(signal.SIGTERM)
        told += list(chunks)
        assert sum(bool(choice["logprobs"]) for chunk in told for choice in chunk["choices"]) == 150, "it was let finish"
        assert process.wait(30) == 0
        assert process.stderr.read() == "stopped\n"


def test_answers_that_outlast_the_patience_are_told_so(exported: Path) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    command = [sys.executable, "-m", "runtime_py", "serve", "-p", str(exported), "--port", "0", "--threads", "1"]
    command += ["--slots", "1", "--model-name", "demo", "--patience", "0"]
    answered: list[str] = []
    waiter: list[str] = []
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            client = Client(process.stderr.readline().partition(" at ")[2].partition("/v1 ")[0])
            body = {"model": "demo", "messages": user_message("Hello", []), "max_tokens": 2000, "ignore_eos": True}
            stream = client.stream(body)
            next(stream)
            waiting = threading.Thread(target=_read, args=(client.stream(body), waiter))
            waiting.start()
            while client.gauges()["edgeproof_requests_queued"] < 1:
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGTERM)
        _read(stream, answered)
        waiting.join(30)
        for told in (answered, waiter):
            assert len(told) == 1 and "the server is stopping" in told[0]
        assert process.wait(30) == 0
        assert process.stderr.read() == "stopped\n"


def test_a_question_that_is_still_being_sent_does_not_hold_the_end(exported: Path) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    command = [sys.executable, "-m", "runtime_py", "serve", "-p", str(exported), "--port", "0", "--threads", "1"]
    with subprocess.Popen([*command, "--patience", "600"], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        port = int(re.findall(r":(\d+)/v1 ", process.stderr.readline())[0])
        with socket.create_connection(("127.0.0.1", port), timeout=60) as half:
            half.sendall(HALF.encode())
            Client(f"http://127.0.0.1:{port}").gauges()  # the loop came round: it has the half as well
            process.send_signal(signal.SIGTERM)
            answer = b"".join(iter(lambda: half.recv(1 << 16), b"")).decode()
        assert answer.startswith("HTTP/1.1 503 ") and "the server is stopping" in answer
        assert process.wait(60) == 0
        assert process.stderr.read() == "stopped\n"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_who_reads_the_line_may_stop_it_at_once(exported: Path, stop: signal.Signals) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    command = [sys.executable, "-m", "runtime_py", "serve", "-p", str(exported), "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        process.send_signal(stop)
        assert said.startswith("serving ") and process.stderr.read() == "stopped\n" and process.wait(30) == 0


def _read(stream: Iterator[dict[str, Any]], errors: list[str]) -> None:
    """A stream to its end; the error that ends it goes to ``errors``."""
    try:
        for _ in stream:
            pass
    except EdgeproofError as error:
        errors.append(str(error))


def test_what_cannot_be_served_is_said_before_anything_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    empty = tmp_path / "keys"
    empty.write_text("\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for flags, code, said in (
            (["--port", port], 7, "cannot be listened at"),
            (["--host", "no.such.host.invalid"], 7, "cannot be listened at"),
            (["--host", "no..host"], 7, "cannot be listened at"),
            (["--port", "70000"], 2, "at most 65535"),
            (["--slots", "0"], 2, "at least 1"),
            (["--api-key-file", str(empty)], 2, "holds no API key"),
            (["--port", "0"], 2, "is no folder"),
        ):
            assert main(["serve", "-p", str(tmp_path / "none"), *flags]) == code
            assert said in capsys.readouterr().err
