"""The conversation of ``edgeproof chat``: one question, or turns from a terminal or a pipe."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from types import FrameType
from typing import TextIO

import numpy as np

from runtime_py.command import console
from runtime_py.command.dispatch import Terminated
from runtime_py.command.failure import message
from runtime_py.command.terminal import Lines, open_lines, path_of
from runtime_py.errors import EdgeproofError, ExitCode, UsageError, did_you_mean
from runtime_py.generation.generate import Overrides, settings_of
from runtime_py.model import Answer, Model
from runtime_py.preprocess.base import Message

log = logging.getLogger(__name__)

COMMANDS = {
    "/image": "FILE  add a picture to the next question",
    "/reset": "forget the conversation and its pictures",
    "/help": "this list",
    "/exit": "leave (so does Ctrl-D); Ctrl-C stops an answer",
}


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
    on. The exit code is that of the last failure when no person types, so that scripts notice.

    Raises:
        EdgeproofError: ``images`` or ``prompt`` cannot be answered about.
        KeyboardInterrupt: Ctrl-C, unless a person types the turns.
    """
    temperature = settings_of(model.package.generation, overrides).sampling.temperature
    if overrides.prompt_lookup and temperature:
        log.warning(
            "answers are drawn at temperature %g, so --prompt-lookup guesses nothing; --temperature 0 lets it", temperature
        )
    talk = Conversation(model, overrides, as_json, out)
    talk.add_images(images)
    if prompt is not None:
        talk.ask(_text(prompt))
        return ExitCode.OK
    lines = open_lines(lines_in, list(COMMANDS))
    if lines.typed:
        model.open_ahead(pictures=bool(images))  # while the question is typed
        console.say(help_text())
    try:
        return _turns(talk, lines)
    finally:
        lines.close()


def help_text() -> str:
    """The commands, a line each."""
    return "\n".join(f"{name:<8}{meaning}" for name, meaning in COMMANDS.items())


def _turns(talk: Conversation, lines: Lines) -> int:
    failed = int(ExitCode.OK)
    talk.stoppable = lines.typed
    while True:
        line: str | None = ""
        try:
            line = lines.read()
            if line is None or line.strip() == "/exit":
                return int(ExitCode.OK) if lines.typed else failed
            talk.take(line)
        except EdgeproofError as error:
            console.say(message(error))
            failed = int(error.exit_code)
        except KeyboardInterrupt as stop:
            if not lines.typed or isinstance(stop, Terminated):
                raise
            if line:
                talk.model.reset()
            console.say("\n(/exit or Ctrl-D leaves)")


def _text(prompt: str) -> str:
    text = console.decoded(prompt, sys.stdin)
    if text is None:
        raise UsageError("--prompt is no text", "text in UTF-8", "convert it, e.g. with iconv")
    return text


class Conversation:
    """Turns and pictures so far; a failed turn leaves them as they were.

    Attributes:
        stoppable: Ctrl-C ends an answer early; what was said of it stays in the conversation.
    """

    def __init__(self, model: Model, overrides: Overrides, as_json: bool, out: TextIO) -> None:
        self.model = model
        self.overrides = overrides
        self.as_json = as_json
        self.out = out
        self.stoppable = False
        self.turns: list[Message] = []
        self.images: list[np.ndarray] = []
        self.waiting: list[np.ndarray] = []

    def add_images(self, paths: Sequence[str]) -> None:
        """Pictures for the next question. Each is opened and tried at once, so that one that cannot be read, or that this
        model does not take in this conversation, is refused where it was named.
        """
        from runtime_py.preprocess.pictures import open_picture

        opened = [open_picture(path, upright=self.model.upright, check=self.model.check_picture) for path in paths]
        if opened:
            self._try([*self.waiting, *opened])
        self.waiting += opened

    def take(self, line: str) -> None:
        """One line of input: a command, or a question; blank lines are passed over.

        Raises:
            UsageError: a command that does not exist, or that lacks its file.
        """
        if not line.startswith("/"):
            if line.strip():
                self.ask(line.removeprefix(" ") if line.startswith(" /") else line)
            return
        word, _, rest = line.strip().partition(" ")
        if word == "/image":
            if not rest.strip():
                raise UsageError("/image without a file", "/image FILE", "name a picture")
            self.add_images([path_of(rest)])
        elif word == "/reset":
            self.turns, self.images, self.waiting = [], [], []
            self.model.reset()
        elif word == "/help":
            console.say(help_text())
        else:
            otherwise = "a question that begins with / is typed with a space before it"
            raise UsageError(f"{word} is no command", ", ".join(COMMANDS), did_you_mean(word, COMMANDS, otherwise))

    def ask(self, text: str) -> Answer:
        """Stream one answer to ``out`` and remember the turn."""
        images = [*self.images, *self.waiting]
        turns = [*self.turns, self._question(text, self.waiting)]
        run = self.model.generate(turns, images, self.overrides)
        with _stopped_by_interrupt(run.stop) if self.stoppable else nullcontext():
            for token in run:
                if token.text and not self.as_json:
                    self._show(token.text)
        answer = run.answer
        assert answer is not None
        self.turns, self.images, self.waiting = [*turns, Message("assistant", answer.text)], images, []
        if self.as_json:
            self._show(console.json_text(_row(answer), self.out, indent=None))
        self._show("\n")
        return answer

    def _question(self, text: str, pictures: Sequence[np.ndarray]) -> Message:
        first = len(self.images)
        return Message("user", text, tuple(range(first, first + len(pictures))))

    def _try(self, pictures: Sequence[np.ndarray]) -> None:
        """Make the prompt of a question about these pictures, which refuses what the model does not take."""
        from runtime_py.preprocess.clips import joined, takes_clips

        turns, images = [*self.turns, self._question("?", pictures)], [*self.images, *pictures]
        if takes_clips(self.model.processor):
            turns, images = joined(turns, images)
        self.model.processor.prompt.check(turns, len(images))
        self.model.prompt_layout(turns, self.model.processor.images(images))

    def _show(self, text: str) -> None:
        self.out.write(console.escaped(text) if self.out.isatty() else text)
        self.out.flush()


def _row(answer: Answer) -> dict[str, object]:
    return {"text": answer.text, "ids": list(answer.ids), "finish": str(answer.finish), "timing": asdict(answer.timing)}


@contextmanager
def _stopped_by_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C calls ``stop``, which ends the answer at its next token; a second one interrupts at once."""

    def stopping(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        stop()

    before = signal.signal(signal.SIGINT, stopping)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
