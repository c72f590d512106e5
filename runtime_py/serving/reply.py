"""Answers in the form of OpenAI's chat completions, whole or as chunks of a stream.

Source of the form: openai/openai-openapi, CreateChatCompletionResponse and CreateChatCompletionStreamResponse.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from runtime_py.engine.answer import Answer, Token, TokenLogprobs
from runtime_py.engine.shown_text import ShownText
from runtime_py.generation.generate import Finish
from runtime_py.tokenizer import Tokenizer

FINISH = {Finish.STOP: "stop", Finish.STOPPED: "stop", Finish.LENGTH: "length", Finish.CONTEXT: "length"}

DONE = b"data: [DONE]\n\n"

TOKEN_ID = "token_id:"
"""Before a token's number (vllm-project/vllm, return_tokens_as_token_ids)."""


class Reply:
    """One answer on its way to a client.

    Args:
        usage: the stream tells its token counts at its end.
        token_ids: logprobs name tokens by number.
    """

    def __init__(self, model: str, words: Tokenizer, usage: bool = False, token_ids: bool = False) -> None:
        self.model, self.words, self.usage, self.token_ids = model, words, usage, token_ids
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self._shown = ShownText()

    def whole(self, answer: Answer, tokens: Sequence[Token]) -> dict[str, Any]:
        """The whole answer."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._logprobs(tokens),
            "finish_reason": FINISH[answer.finish],
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(answer), "timings": timings(answer)}

    def opening(self) -> bytes:
        """The first chunk of a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def token(self, token: Token) -> bytes:
        """The chunk of a token; nothing where it brings neither text nor logprobs."""
        text = self._shown.push(token.text)
        logprobs = self._logprobs([token])
        return self._chunk({"content": text}, logprobs) if text or logprobs else b""

    def ending(self, answer: Answer) -> bytes:
        """The last chunks of a stream."""
        text = self._shown.push(answer.tail)
        chunks = self._chunk({"content": text}) if text else b""
        chunks += self._chunk({}, finish=FINISH[answer.finish])
        if self.usage:
            told = {"usage": usage(answer), "timings": timings(answer)}
            chunks += _event({**self._head("chat.completion.chunk"), "choices": [], **told})
        return chunks + DONE

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        more = {"usage": None} if self.usage else {}
        return _event({**self._head("chat.completion.chunk"), "choices": [choice], **more})

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        content = [self._entry(token.id, token.logprobs) for token in tokens if token.logprobs is not None]
        return {"content": content, "refusal": None} if content else None

    def _entry(self, token: int, logprobs: TokenLogprobs) -> dict[str, Any]:
        top = [self._one(other, value) for other, value in logprobs.top]
        return {**self._one(token, logprobs.logprob), "top_logprobs": top}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        piece = self.words.pieces[token] if token < len(self.words.pieces) else b""
        shown = f"{TOKEN_ID}{token}" if self.token_ids else piece.decode("utf-8", "replace")
        return {"token": shown, "logprob": logprob, "bytes": list(piece)}


def usage(answer: Answer) -> dict[str, Any]:
    """Tokens of a request and its answer; image rows count as tokens of the prompt."""
    timing = answer.timing
    return {
        "prompt_tokens": timing.prompt_tokens,
        "completion_tokens": timing.answer_tokens,
        "total_tokens": timing.prompt_tokens + timing.answer_tokens,
        "prompt_tokens_details": {"cached_tokens": timing.kept_tokens},
    }


def timings(answer: Answer) -> dict[str, Any]:
    """Where an answer's time went, in seconds, beside ``usage``; not a part of OpenAI's interface."""
    timing = answer.timing
    return {
        "queue_seconds": round(timing.queue_seconds, 6),
        "image_seconds": round(timing.image_seconds, 6),
        "prefill_seconds": round(timing.prefill_seconds, 6),
        "first_token_seconds": round(timing.first_token_seconds, 6),
        "decode_seconds": round(timing.decode_seconds, 6),
        "decode_steps": timing.steps,
    }


def failure(value: dict[str, Any]) -> bytes:
    """An error in the middle of a stream, which ends there."""
    return _event(value)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"
