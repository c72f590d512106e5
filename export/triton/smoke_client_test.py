"""The repository's own client against servers that answer as they should, and against others."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export.triton import smoke_client
from export.triton.repository_test import package_at
from export.triton.smoke_client import Failure, Sample, over_http


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what the server was given for a path's last part, and keeps what it was asked."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, asked))  # type: ignore[attr-defined]
        status, text = self.server.told[self.path.rpartition("/")[2]]  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    made: Any = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    made.asked, made.told = [], told()
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def told(*pieces: tuple[object, str], whole: object = "ab", status: int = 200) -> dict[str, tuple[int, str]]:
    """A whole answer of the recorded tokens 1 and 2, and the same in pieces; Triton writes one number without a list."""
    rows = [{"token_ids": ids, "text_output": text} for ids, text in pieces or ((1, "a"), ([2], "b"))]
    stream = "".join(f"data: {json.dumps(row)}\n\n" for row in [*rows, {"text_output": ""}])
    return {
        "generate": (status, json.dumps({"token_ids": [1, 2], "text_output": whole})),
        "generate_stream": (200, stream),
    }


def asks(server: Any, package: Path) -> None:
    over_http("127.0.0.1", server.server_address[1], "one", Sample(package))


def test_an_answer_as_recorded_is_right_whole_and_streamed(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = package_at(tmp_path, "one", "server-cpu")
    asks(server, package)
    assert capsys.readouterr().out == "  HTTP, whole: 2 tokens, 'ab'\n  HTTP, streamed: 2 tokens, 'ab'\n"
    (path, whole), (streamed_path, streamed) = server.asked
    assert (path, streamed_path) == ("/v2/models/one/generate", "/v2/models/one/generate_stream")
    assert whole["text_input"] == "What?" and streamed == whole | {"stream": True}
    picture = json.loads((package / "selftest" / "sample.json").read_text(encoding="utf-8"))["image"]
    assert base64.b64decode(whole["image"][0]) == (package / "selftest" / picture).read_bytes()
    greedy = {"max_tokens": 16, "temperature": 0, "top_k": 0, "repetition_penalty": 1.0, "ignore_eos": True}
    assert json.loads(whole["sampling_parameters"]) == greedy


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (told(([1, 3], "ab")), r"HTTP, streamed answers \[1, 3\]"),
        (told(([2], "b"), ([1], "a"), whole="ba"), r"answers \[2, 1\]"),
        (told(([1, 2], "ac")), "the stream says 'ac'"),
        (told(status=503), "answers 503"),
    ],
)
def test_another_answer_is_a_failure(server: Any, tmp_path: Path, answers: dict[str, Any], said: str) -> None:
    server.told = answers
    with pytest.raises(Failure, match=said):
        asks(server, package_at(tmp_path, "one", "server-cpu"))


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["a", "b"], ["a", "1", "b"], ["a", "1", "2", "3"]], ids=" ".join)
def test_what_cannot_be_asked_is_answered_with_the_usage(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["smoke_client.py", *words])
    assert smoke_client.main() == 2
    assert "[HOST [HTTP_PORT [GRPC_PORT]]]" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "code", "last"), [(200, 0, "all right"), (503, 1, "1 failed")])
def test_the_exit_code_is_that_of_every_way_that_was_tried(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    status: int, code: int, last: str,
) -> None:  # fmt: skip
    def missing(*_: object) -> None:
        raise ImportError("No module named 'tritonclient'")

    package_at(tmp_path, "one", "server-cpu")
    server.told = told(status=status)
    monkeypatch.setattr(smoke_client, "HERE", tmp_path)
    monkeypatch.setattr(smoke_client, "over_grpc", missing)
    monkeypatch.setattr("sys.argv", ["smoke_client.py", "127.0.0.1", str(server.server_address[1])])
    assert smoke_client.main() == code
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "one" and said[-1].startswith(f"{last}; gRPC was not run (No module named 'tritonclient')")
