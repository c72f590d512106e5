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
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime_py.command import flags, serve
from runtime_py.command.bench_server import Load, lines, measure
from runtime_py.command.cli import main
from runtime_py.engine.service import Sizes
from runtime_py.errors import EdgeproofError, UsageError
from runtime_py.generation.limits import MOST_SLOTS
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


def _model(batch: int = 1, **manifest: Any) -> Any:
    package = SimpleNamespace(limits=SimpleNamespace(batch=batch), manifest=manifest, family="minicpm-v")
    return SimpleNamespace(package=package, check_picture=None)


def test_flags_are_what_a_server_is_told() -> None:
    pytest.importorskip("starlette")
    plain = serve.parser("serve").parse_args(["-p", "a"])
    told = serve._serving(plain, _model(), [])
    pictures = told.limits.pictures
    assert (pictures.count, pictures.bytes, pictures.pixels, pictures.remote) == (16, 20 << 20, 64_000_000, False)
    assert (told.limits.body_bytes, told.limits.seconds, told.patience) == (64 << 20, 600.0, 30.0)
    assert serve._sizes(plain, _model()) == Sizes(slots=8, queue=64, chunk=128)
    assert serve._sizes(plain, _model(batch=4)).slots == 4, "as many as the export planned for"
    for number, words in (("0", "at least 1"), (str(MOST_SLOTS + 1), f"more than {MOST_SLOTS}")):
        with pytest.raises(UsageError, match=words):
            serve.parser("serve").read(["-p", "a", "--slots", number])
    flags = (
        "--max-images 0 --max-image-mb 3 --max-megapixels 5 --max-request-mb 7 --timeout 9 --patience 0 --slots 2 --queue 0"
    )
    given = serve.parser("serve").parse_args(["-p", "a", *flags.split(), "--prefill-chunk", "11", "--allow-remote-images"])
    told = serve._serving(given, _model(), ["key"])
    pictures = told.limits.pictures
    assert (pictures.count, pictures.bytes, pictures.pixels, pictures.remote) == (0, 3 << 20, 5_000_000, True)
    assert (told.limits.body_bytes, told.limits.seconds, told.patience, told.keys) == (7 << 20, 9.0, 0.0, ["key"])
    assert serve._sizes(given, _model(batch=4)) == Sizes(slots=2, queue=0, chunk=11)


def test_a_model_is_called_as_it_is_told_or_as_its_source_or_its_family() -> None:
    pytest.importorskip("starlette")
    plain, named = (serve.parser("serve").parse_args(["-p", "a", *more]) for more in ([], ["--model-name", "mine"]))
    of_hub = _model(source={"id": "openbmb/MiniCPM-V"})
    names = [serve._serving(flags, model, []).name for flags in (plain, named) for model in (of_hub, _model(source=None))]
    assert names == ["openbmb/MiniCPM-V", "minicpm-v", "mine", "mine"]


@pytest.mark.parametrize(
    ("host", "keys", "address", "open_to_others"),
    [
        ("127.0.0.1", [], "127.0.0.1", False),
        ("127.8.0.1", [], "127.8.0.1", False),
        ("localhost", [], "localhost", False),
        ("::1", [], "[::1]", False),
        ("0.0.0.0", [], "0.0.0.0", True),
        ("::", [], "[::]", True),
        ("a.host", [], "a.host", True),
        ("0.0.0.0", ["key"], "0.0.0.0", False),
    ],
)
def test_a_server_says_where_it_is_and_who_may_ask(
    capsys: pytest.CaptureFixture[str], host: str, keys: list[str], address: str, open_to_others: bool
) -> None:
    pytest.importorskip("starlette")
    told = serve._serving(serve.parser("serve").parse_args(["-p", "a"]), _model(), keys)
    for slots, notice, many in ((1, "", "1 slot;"), (2, "one at a time", "2 slots;")):
        engine: Any = SimpleNamespace(slots=[None] * slots, notice=notice)
        serve._tell(host, 80, told, SimpleNamespace(engine=engine))  # type: ignore[arg-type]
        said = capsys.readouterr().err
        assert f"serving minicpm-v at http://{address}:80/v1 with {many}" in said
        assert ("--api-key-file" in said) == open_to_others and ("note: one at a time\n" in said) == bool(notice)


def test_keys_are_what_a_header_can_hold(tmp_path: Path) -> None:
    """A byte order mark, as editors on Windows write one, belongs to no key."""
    path = tmp_path / "keys"
    path.write_bytes(b"\xef\xbb\xbffirst key\r\n\r\n  second\t\n")
    assert flags.keys(path) == ["first key", "second"]
    for content in ("first\nschlüssel\n".encode(), "first\nschlüssel\n".encode("latin-1"), b"first\nse\0cret\n"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="line 2") as refused:
            flags.keys(path)
        assert "cret" not in str(refused.value) and "schl" not in str(refused.value)
    path.write_bytes("first\n".encode("utf-16"))
    with pytest.raises(UsageError, match="line 1"):
        flags.keys(path)


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
