"""Commands and their verbs, and how one is run from a list of arguments to an exit code."""

from __future__ import annotations

import atexit
import logging
import os
import shlex
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from runtime_py.command import console, failure, pages
from runtime_py.command.parser import Parser, arguments_of
from runtime_py.errors import ExitCode, InterruptedExportError, UsageError, did_you_mean

TALK = frozenset({"-q", "--quiet", "--verbose", "-v", "-vv", "-vvv"})
"""Flags that may stand before a verb too."""

RESEND_SECONDS = 0.01
"""Until an interrupt that was lost is sent again."""

LOGGERS = ("edgeproof", "runtime_py", "targets", "export", "calibrate", "parity_tests")
"""Whose messages ``-v`` and ``-q`` decide about; of other libraries, warnings are shown."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: an interrupt that is not for one answer but for the whole program."""


@dataclass(frozen=True)
class Command:
    """Something that can be typed.

    Attributes:
        parser: the flags, for what the user types before them; None for a command that is nothing but its verbs.
        run: does the work and returns the exit code; beside the flags' values, ``typed`` is the whole command line.
        summary: of a command without a parser of its own, for its --help.
        verbs: first words that lead to other commands.
        level: of the messages that are shown without ``-v`` and ``-q``.
    """

    parser: Callable[[str], Parser] | None = None
    run: Callable[[Namespace], int] | None = None
    summary: str = ""
    verbs: tuple[Verb, ...] = ()
    level: int = logging.INFO


@dataclass(frozen=True)
class Verb:
    """A word that leads to a command; loading it imports no heavy library, and none of the other verbs."""

    name: str
    summary: str
    load: Callable[[], Command]


def execute(command: Command, prog: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command to its exit code; every failure is printed as one message on stderr.

    Args:
        prog: what the user typed so far, such as ``python -m export``.
        arguments: the rest; None for the process's own.
    """
    given = arguments_of(arguments)
    console.prepare()
    try:
        with _termination_is_an_interrupt():
            return _lead(command, prog, given)
    except SystemExit as stop:  # argparse, after --help and --version
        return stop.code if isinstance(stop.code, int) else int(ExitCode.OK)
    except BrokenPipeError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)
    except BaseException as error:
        return failure.report(error, verbosity(given))


def verbosity(arguments: Sequence[str]) -> int:
    """How often ``-v`` was given; known even where the flags cannot be understood."""
    count = 0
    for argument in arguments:
        if argument == "--":
            break
        if argument == "--verbose":
            count += 1
        elif argument.startswith("-v") and set(argument[1:]) == {"v"}:
            count += len(argument) - 1
    return count


def help_text(command: Command, prog: str) -> str:
    """The --help of a command that is nothing but its verbs."""
    flags = f"`{prog} VERB --help` lists the flags of a verb; --version prints the version."
    paragraphs = [f"usage: {prog} VERB [flags]", command.summary, _verbs(command), flags, failure.EXIT_CODES]
    place = pages.folder()
    return "\n\n".join(paragraphs if place is None else [*paragraphs, f"pages that are named docs/...: {place}"])


def _verbs(command: Command) -> str:
    width = max(len(verb.name) for verb in command.verbs) + 2
    return "\n".join(["verbs:", *(f"  {verb.name:<{width}}{verb.summary}" for verb in command.verbs)])


def _lead(command: Command, prog: str, given: Sequence[str]) -> int:
    """Follow the verbs to the command that is meant, and run it."""
    leading = 0
    while command.verbs and leading < len(given) and given[leading] in TALK:
        leading += 1
    word = given[leading] if leading < len(given) else ""
    for verb in command.verbs:
        if verb.name == word:
            return _lead(verb.load(), f"{prog} {word}", [*given[:leading], *given[leading + 1 :]])
    if command.verbs and word == "help":
        return _lead(command, prog, [*given[leading + 1 :], "--help"])
    if command.parser is None or command.run is None:
        return _without_verb(command, prog, word)
    made = command.parser(prog)
    if command.verbs:
        made.epilog = f"{_verbs(command)}\n\n{made.epilog}"
        if word and not word.startswith("-"):
            raise _no_such_verb(command, prog, word)
    options = made.read(given)
    options.typed = shlex.join([*prog.split(), *given])
    try:
        with _talking(options, command.level):
            return int(command.run(options))
    except KeyboardInterrupt as stop:
        again = "run the same command again" + (" with --resume" if "--resume" in made.flags() else "")
        raise InterruptedExportError(f"{prog} was stopped", "to run to its end", again) from stop


def _without_verb(command: Command, prog: str, word: str) -> int:
    if word == "--version":
        Parser(prog, command.summary).read(["--version"])
    if word in {"", "-h", "--help"}:
        console.out(help_text(command, prog))
        return int(ExitCode.OK)
    raise _no_such_verb(command, prog, word)


def _no_such_verb(command: Command, prog: str, word: str) -> UsageError:
    names = [verb.name for verb in command.verbs]
    expected = "one of " + ", ".join(names)
    return UsageError(f"{prog} {word}: there is no such verb", expected, did_you_mean(word, names, f"run `{prog} --help`"))


class _Escaping(logging.Formatter):
    """Messages hold names from strangers."""

    def format(self, record: logging.LogRecord) -> str:
        return console.escaped(super().format(record))


@contextmanager
def _talking(options: Namespace, level: int) -> Iterator[None]:
    """Messages of edgeproof on stderr, at the level that -v and -q ask for; warnings of other libraries too."""
    quiet, verbose = getattr(options, "quiet", False), getattr(options, "verbose", 0)
    asked = logging.ERROR if quiet else max(logging.DEBUG, level - (logging.INFO - logging.DEBUG) * verbose)
    root, own = logging.getLogger(), [logging.getLogger(name) for name in LOGGERS]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Escaping("%(message)s"))
    before = [logger.level for logger in own]
    root.addHandler(handler)
    for logger in own:
        logger.setLevel(asked)
    try:
        yield
    finally:
        root.removeHandler(handler)
        for logger, was in zip(own, before, strict=True):
            logger.setLevel(was)


@contextmanager
def _termination_is_an_interrupt() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: what can be resumed is kept, and the exit code says so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    atexit.register(_too_late)
    before, hook = signal.signal(signal.SIGTERM, _interrupt), sys.unraisablehook
    sys.unraisablehook = lambda lost: (
        _resend(lost.exc_value) if isinstance(lost.exc_value, KeyboardInterrupt) else hook(lost)
    )
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)


def _too_late() -> None:
    """Nothing is left to interrupt while the interpreter is taken down, which may take seconds; the exit code stays."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _resend(lost: KeyboardInterrupt) -> None:
    """Send once more an interrupt that came where Python drops exceptions: in a destructor, or in a library's callback."""
    number = signal.SIGTERM if isinstance(lost, Terminated) else signal.SIGINT
    later = threading.Timer(RESEND_SECONDS, signal.raise_signal, [number])
    later.daemon = True
    later.start()


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated
