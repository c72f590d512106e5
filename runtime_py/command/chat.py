"""The conversation of ``python -m runtime_py chat``: one question, or turns from a terminal or a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TextIO

from runtime_py.errors import EdgeproofError, ExitCode
from runtime_py.generation.generate import Overrides
from runtime_py.model import Answer, Model
from runtime_py.preprocess.base import Message

COMMANDS = """\
/image FILE   add a picture to the next question
/reset        forget the conversation and its pictures
/help         this list
/exit         leave (so does the end of input)"""


def converse(
    model: Model,
    images: Sequence[str],
    prompt: str | None,
    overrides: Overrides,
    as_json: bool,
    lines_in: TextIO,
    out: TextIO,
) -> int:
    """Answer ``prompt``, or every line of ``lines_in``; returns the exit code.

    A turn that fails (a picture that cannot be read, a full context) is reported and forgotten; the conversation goes
    on. The exit code is that of the last failure when the input is no terminal, so that scripts notice.
    """
    talk = Conversation(model, overrides, as_json, out)
    talk.add_images(images)
    if prompt is not None:
        talk.ask(prompt)
        return ExitCode.OK
    terminal = lines_in.isatty()
    failed = 0
    if terminal:
        _talk(COMMANDS + "\n")
    while True:
        if terminal:
            _talk("> ")
        line = lines_in.readline()
        if not line or line.strip() == "/exit":
            return ExitCode.OK if terminal else failed
        try:
            talk.take(line.rstrip("\r\n"))
        except EdgeproofError as error:
            _talk(f"error: {error}\n")
            failed = int(error.exit_code)


def _talk(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


class Conversation:
    """Turns and pictures so far; a failed turn leaves them as they were."""

    def __init__(self, model: Model, overrides: Overrides, as_json: bool, out: TextIO) -> None:
        self.model = model
        self.overrides = overrides
        self.as_json = as_json
        self.out = out
        self.turns: list[Message] = []
        self.images: list[str] = []
        self.waiting: list[str] = []

    def add_images(self, paths: Sequence[str]) -> None:
        """Pictures for the next question; each is opened at once, so that a bad one is reported where it was named."""
        from runtime_py.preprocess.pictures import open_picture

        for path in paths:
            open_picture(path)
        self.waiting += paths

    def take(self, line: str) -> None:
        """One line of input: a command or a question; blank lines are passed over."""
        word, _, rest = line.strip().partition(" ")
        if word == "/image":
            self.add_images([rest.strip()])
        elif word == "/reset":
            self.turns, self.images, self.waiting = [], [], []
            self.model.reset()
        elif word == "/help":
            _talk(COMMANDS + "\n")
        elif word:
            self.ask(line)

    def ask(self, text: str) -> Answer:
        """Stream one answer to ``out`` and remember the turn."""
        images = [*self.images, *self.waiting]
        question = Message("user", text, tuple(range(len(self.images), len(images))))
        self.waiting = []
        turns = [*self.turns, question]
        answer = self.model.chat(turns, images, None if self.as_json else self._show, self.overrides)
        self.turns, self.images = [*turns, Message("assistant", answer.text)], images
        if self.as_json:
            row = {
                "text": answer.text,
                "ids": list(answer.ids),
                "finish": str(answer.finish),
                "timing": asdict(answer.timing),
            }
            self._show(json.dumps(row, ensure_ascii=False))
        self._show("\n")
        return answer

    def _show(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()
