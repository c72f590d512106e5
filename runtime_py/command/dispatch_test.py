"""From arguments to an exit code."""

from __future__ import annotations

import argparse
import logging
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, Verb, execute, verbosity
from runtime_py.command.parser import Parser
from runtime_py.errors import DoesNotFitError, ExitCode, UnsupportedModelError

ROOT = Path(__file__).parents[2]


def command(work: Callable[[argparse.Namespace], int], resumes: bool = False) -> Command:
    def parser(prog: str) -> Parser:
        made = Parser(prog, "Works.")
        if resumes:
            made.add_argument("--resume", action="store_true")
        flags.talk(made)
        return made

    return Command(parser, work)


def refuse_to_load() -> Command:
    raise AssertionError("another verb was loaded")


def typed(options: argparse.Namespace) -> int:
    console.out(options.typed)
    return 0


GROUP = Command(
    summary="Several things.",
    verbs=(Verb("work", "do it", lambda: command(typed)), Verb("other", "do something else", refuse_to_load)),
)
BOTH = Command(command(typed).parser, typed, verbs=(Verb("work", "do it", lambda: command(typed)),))


def test_verbs_lead_to_commands_and_usage_says_how_they_were_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(GROUP, "tool", ["work", "-v"]) == 0
    assert capsys.readouterr().out == "tool work -v\n"
    assert execute(GROUP, "tool", ["-q", "work"]) == 0
    assert capsys.readouterr().out == "tool work -q\n"
    for arguments in (["work", "--help"], ["help", "work"]):
        assert execute(GROUP, "tool", arguments) == 0
        assert capsys.readouterr().out.startswith("usage: tool work ")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"], ["-h"]])
def test_a_group_lists_its_verbs(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(GROUP, "tool", arguments) == 0
    out = capsys.readouterr().out
    assert "usage: tool VERB" in out and "work   do it" in out and "exit codes: 0" in out


@pytest.mark.parametrize("group", [GROUP, BOTH])
def test_a_mistyped_verb_is_told_the_nearest(group: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(group, "tool", ["wrok"]) == ExitCode.USAGE
    printed = capsys.readouterr().err
    assert "tool wrok: there is no such verb" in printed and "did you mean work?" in printed


def test_a_command_may_have_verbs_beside_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(BOTH, "tool", ["-v"]) == 0
    assert execute(BOTH, "tool", ["work"]) == 0
    assert capsys.readouterr().out == "tool -v\ntool work\n"
    assert execute(BOTH, "tool", ["--help"]) == 0
    assert "verbs:\n  work  do it" in capsys.readouterr().out


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def work(options: argparse.Namespace) -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnsupportedModelError("a", "b", "c"), 3),
        (DoesNotFitError("a", "b", "c"), 4),
        (KeyboardInterrupt(), 6),
        (ValueError("what"), 1),
    ],
)
def test_failures_become_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(command(raising(error)), "tool", []) == code
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
    assert execute(command(raising(error)), "tool", ["-vv"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_speaks_of_resuming_where_that_is_possible(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(command(raising(KeyboardInterrupt()), resumes=True), "tool", []) == ExitCode.INTERRUPTED
    assert "run the same command again with --resume" in capsys.readouterr().err
    assert execute(command(raising(KeyboardInterrupt())), "tool", []) == ExitCode.INTERRUPTED
    assert "--resume" not in capsys.readouterr().err


def test_sigterm_is_an_interrupt_and_the_handler_is_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work(options: argparse.Namespace) -> int:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(5)
        return 0

    assert execute(command(work), "tool", []) == ExitCode.INTERRUPTED
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_that_a_destructor_swallows_comes_again(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    class Left:
        pass

    def run(given: argparse.Namespace) -> int:
        left = Left()
        watched = weakref.ref(left, lambda _: signal.raise_signal(number))
        del left
        assert watched() is None
        time.sleep(10)
        return ExitCode.OK

    assert execute(Command(lambda prog: Parser(prog, ""), run), "program", []) == ExitCode.INTERRUPTED
    assert "Exception ignored" not in capsys.readouterr().err


SLOW_TO_CLOSE = """
import sys, time
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser

class Slow:
    def __del__(self, sleep=time.sleep):
        print("closing", flush=True)
        sleep(2)

slow = Slow()
sys.exit(execute(Command(lambda prog: Parser(prog, ""), lambda given: 0), "program", []))
"""


def test_a_termination_after_the_work_changes_nothing() -> None:
    command, root = [sys.executable, "-c", SLOW_TO_CLOSE], Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as run:
        assert run.stdout is not None and run.stdout.readline() == "closing\n"
        run.terminate()
        assert run.wait(30) == ExitCode.OK


def test_a_reader_that_leaves_ends_a_program_in_silence() -> None:
    """``tool | head -1``: no traceback, exit code 0."""
    program = (
        "from runtime_py.command import console\nfrom runtime_py.command.dispatch import Command, execute\n"
        "from runtime_py.command.parser import Parser\nimport sys\n"
        "def work(options):\n    while True:\n        console.out('x' * 4096)\n"
        "sys.exit(execute(Command(lambda prog: Parser(prog, ''), work), 'tool', []))"
    )
    running = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert running.stdout is not None and running.stderr is not None
    running.stdout.read(1)
    running.stdout.close()
    assert running.wait(20) == 0
    assert running.stderr.read() == b""
    running.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "level"),
    [([], logging.INFO), (["-v"], logging.DEBUG), (["-vv"], logging.DEBUG), (["-q"], logging.ERROR)],
)
def test_how_much_is_said(arguments: list[str], level: int, capsys: pytest.CaptureFixture[str]) -> None:
    def work(options: argparse.Namespace) -> int:
        assert logging.getLogger("edgeproof").getEffectiveLevel() == level
        logging.getLogger("runtime_py.x").error("file \x1b[2J")
        return 0

    before = logging.getLogger("edgeproof").level
    assert execute(command(work), "tool", arguments) == 0
    assert capsys.readouterr().err == "file \\x1b[2J\n"
    assert logging.getLogger("edgeproof").level == before


def test_verbosity_is_known_where_the_flags_are_not() -> None:
    assert verbosity(["--nothing", "-vv"]) == 2
    assert verbosity(["-v", "--verbose"]) == 2
    assert verbosity(["--version", "-x", "--", "-vv"]) == 0


def test_the_last_resort_speaks_of_flags_that_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(command(typed), "tool", ["--nothing", "-vv"]) == ExitCode.USAGE
    assert "Traceback" in capsys.readouterr().err
