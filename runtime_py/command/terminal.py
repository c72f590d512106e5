"""Where the lines of a conversation come from: a person at a terminal, with editing and history, or a pipe."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TextIO

from runtime_py.command import console
from runtime_py.errors import UsageError

PROMPT = "> "
HISTORY_LINES = 1000


class Lines(Protocol):
    """A source of lines.

    Attributes:
        typed: a person types them: mistakes are said and forgotten, Ctrl-C stops an answer and not the program.
    """

    typed: bool

    def read(self) -> str | None:
        """The next line without its end; None after the last."""
        ...

    def close(self) -> None: ...


def open_lines(stream: TextIO, words: Sequence[str]) -> Lines:
    """The lines of ``stream``; ``words`` are completed at the beginning of a typed line, paths after them."""
    if not stream.isatty():
        return Piped(stream)
    return Edited(words) if stream is sys.stdin and sys.stdout.isatty() else Typed(stream)


class Piped:
    """Lines of a file or of another program."""

    typed = False

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.number = 0

    def read(self) -> str | None:
        """The next line, without asking for it.

        Raises:
            UsageError: the line is no text in UTF-8; the next one can be read.
        """
        line = self.stream.readline()
        if not line:
            return None
        self.number += 1
        text = console.decoded(line, self.stream)
        if text is None:
            raise UsageError(f"line {self.number} of the input is no text", "text in UTF-8", "convert it, e.g. with iconv")
        return text.rstrip("\r\n")

    def close(self) -> None:
        pass


class Typed(Piped):
    """Lines of a person whose terminal edits nothing, or whose answers go into a file."""

    typed = True

    def read(self) -> str | None:
        """The next line, after a prompt on stderr, where it cannot get into a file of answers."""
        sys.stderr.write(PROMPT)
        sys.stderr.flush()
        return super().read()


class Edited:
    """Lines of a person, edited with readline where Python has it, with the questions of earlier days."""

    typed = True

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self.history = history_file()
        try:
            import readline
        except ImportError:  # Windows has none; the console edits lines there
            self.readline = None
            return
        self.readline = readline
        readline.clear_history()
        with contextlib.suppress(OSError):
            readline.read_history_file(self.history)
        readline.set_completer_delims(" \t")
        readline.set_completer(self._complete)
        editline = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if editline else "tab: complete")

    def read(self) -> str | None:
        """The line as it was edited; None when the person ends the input (Ctrl-D)."""
        try:
            line = input(PROMPT)
        except EOFError:
            console.say("")
            return None
        text = console.decoded(line, sys.stdin)
        if text is None:
            raise UsageError("this line is no text", "text in UTF-8", "type it again")
        return text

    def close(self) -> None:
        """Keep the last `HISTORY_LINES` lines, readable by their owner alone; a home that cannot be written is no fault."""
        if self.readline is None:
            return
        self.readline.set_history_length(HISTORY_LINES)
        with contextlib.suppress(OSError):
            self.history.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.history, os.O_CREAT | os.O_WRONLY, 0o600))
            self.readline.write_history_file(self.history)

    def _complete(self, text: str, state: int) -> str | None:
        assert self.readline is not None
        begins = self.readline.get_begidx() == 0
        completions = [f"{word} " for word in self.words if word.startswith(text)] if begins else paths_from(text)
        return completions[state] if state < len(completions) else None


def paths_from(text: str) -> list[str]:
    """The files and folders whose path begins like this."""
    path = _at_home(text)
    folder, start = (path, "") if text.endswith("/") or not text else (path.parent, path.name)
    try:
        beside = sorted(one for one in folder.iterdir() if one.name.startswith(start))
    except OSError:
        return []
    return [f"{one}/" if one.is_dir() else str(one) for one in beside]


def history_file() -> Path:
    """Where the questions of earlier days are kept (XDG base directories)."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "edgeproof" / "chat_history"


def path_of(text: str) -> str:
    """The path that a person typed or dragged into a terminal: quoted, with escaped spaces, with ``~``, or plain."""
    plain = text.strip()
    if not os.path.exists(plain):  # noqa: PTH110  # Path.exists raises for a name that is too long
        with contextlib.suppress(ValueError):
            parts = shlex.split(plain)
            if len(parts) == 1:
                plain = parts[0]
    return str(_at_home(plain)) if plain.startswith("~") else plain


def _at_home(text: str) -> Path:
    """A path with ``~`` resolved; as it is where nobody of that name has a home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)
