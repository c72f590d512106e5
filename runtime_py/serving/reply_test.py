"""Answers as they go over the wire, byte for byte where a client could tell."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from runtime_py.engine.answer import Answer, Timing, Token, TokenLogprobs
from runtime_py.generation.generate import Finish
from runtime_py.serving.reply import DONE, Reply
from runtime_py.tokenizer import Tokenizer

TIMING = Timing(
    prompt_tokens=7, kept_tokens=3, answer_tokens=2, steps=1, image_seconds=0.25, prefill_seconds=0.5,
    first_token_seconds=1.0, decode_seconds=0.125, queue_seconds=0.0625,
)  # fmt: skip
USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 2,
    "total_tokens": 9,
    "prompt_tokens_details": {"cached_tokens": 3},
}
TIMINGS = {
    "queue_seconds": 0.0625, "image_seconds": 0.25, "prefill_seconds": 0.5, "first_token_seconds": 1.0,
    "decode_seconds": 0.125, "decode_steps": 1,
}  # fmt: skip


def answer(finish: Finish = Finish.STOP, tail: str = "") -> Answer:
    return Answer("red circle", (200, 201), finish, TIMING, tail)


def events(sent: bytes) -> list[dict[str, Any]]:
    """The values of a stream's events."""
    rows = sent.removesuffix(DONE).split(b"\n\n")
    assert rows.pop() == b"" and all(row.startswith(b"data: ") and b"\n" not in row for row in rows)
    return [json.loads(row[6:]) for row in rows]


def chunk(reply: Reply, delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {**head(reply, "chat.completion.chunk"), "choices": [choice], **more}


def head(reply: Reply, kind: str) -> dict[str, Any]:
    return {"id": reply.id, "object": kind, "created": reply.created, "model": "demo"}


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_on_the_wire(words: Tokenizer, usage: bool) -> None:
    reply = Reply("demo", words, usage)
    none = {"usage": None} if usage else {}
    assert events(reply.opening()) == [chunk(reply, {"role": "assistant", "content": ""}, **none)]
    assert reply.token(Token(200, " ")) == b"", "no event for a token that brings nothing"
    assert events(reply.token(Token(200, "red"))) == [chunk(reply, {"content": "red"}, **none)]
    ending = reply.ending(answer(tail=" circle"))
    counts = [{**head(reply, "chat.completion.chunk"), "choices": [], "usage": USAGE, "timings": TIMINGS}] if usage else []
    assert events(ending) == [chunk(reply, {"content": " circle"}, **none), chunk(reply, {}, "stop", **none), *counts]
    assert ending.endswith(b"\n\ndata: [DONE]\n\n")
    assert events(Reply("demo", words).ending(answer()))[0]["choices"][0]["delta"] == {}, "no empty text before the end"


@pytest.mark.parametrize(
    ("finish", "said"),
    [(Finish.STOP, "stop"), (Finish.STOPPED, "stop"), (Finish.LENGTH, "length"), (Finish.CONTEXT, "length")],
)
def test_a_whole_answer_on_the_wire(words: Tokenizer, finish: Finish, said: str) -> None:
    reply = Reply("demo", words)
    assert reply.whole(answer(finish), [Token(200, "red"), Token(201, " circle")]) == {
        **head(reply, "chat.completion"),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "red circle", "refusal": None},
                "logprobs": None,
                "finish_reason": said,
            }
        ],
        "usage": USAGE,
        "timings": TIMINGS,
    }
    assert reply.id.startswith("chatcmpl-") and reply.id != Reply("demo", words).id
    assert abs(reply.created - time.time()) < 60


@pytest.mark.parametrize("token_ids", [False, True])
def test_logprobs_name_tokens_by_text_or_number(words: Tokenizer, token_ids: bool) -> None:
    """A token that is a part of a character has bytes, and in its text a sign that stands for them."""
    part = words.pieces.index(b"\xe5")
    comma = words.pieces.index(b",")
    beyond = len(words.pieces)  # a decoder's vocabulary may be larger than its tokenizer's
    reply = Reply("demo", words, token_ids=token_ids)
    token = Token(part, "", TokenLogprobs(-0.5, ((part, -0.5), (comma, -1.0), (beyond, -2.0))))
    shown = {"\ufffd": f"token_id:{part}", ",": f"token_id:{comma}", "": f"token_id:{beyond}"}

    def one(text: str, logprob: float, content: list[int]) -> dict[str, Any]:
        return {"token": shown[text] if token_ids else text, "logprob": logprob, "bytes": content}

    top = [one("\ufffd", -0.5, [0xE5]), one(",", -1.0, [0x2C]), one("", -2.0, [])]
    told = {"content": [{**one("\ufffd", -0.5, [0xE5]), "top_logprobs": top}], "refusal": None}
    (event,) = events(reply.token(token))
    assert event["choices"][0] == {"index": 0, "delta": {"content": ""}, "logprobs": told, "finish_reason": None}
    assert reply.whole(answer(), [token, Token(1, "")])["choices"][0]["logprobs"] == told


def test_text_goes_as_it_is_and_half_a_pair_as_a_question_mark(words: Tokenizer) -> None:
    assert '"content":"图\\n?"'.encode() in Reply("demo", words).token(Token(1, "图\n\ud800"))
