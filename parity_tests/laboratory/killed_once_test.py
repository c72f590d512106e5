"""A kill in the middle ends whatever becomes of the restart, and is not content with one that tried nothing."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from parity_tests.laboratory.killed_once import KilledOnce, slope
from parity_tests.laboratory.process_end import end
from runtime_py.errors import MachineError

ECHO = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True)"


class Echo:
    """A process that says each line again; ``broken`` ones do not start a second time."""

    def __init__(self, broken: bool = False) -> None:
        self.broken, self.kills = broken, 0
        self.start()

    def start(self) -> None:
        if self.broken and self.kills:
            raise MachineError("no room", "room", "make room")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-c", ECHO], text=True, **pipes)  # type: ignore[call-overload]

    def kill(self) -> None:
        self.kills += 1
        self.process.kill()
        self.process.wait()

    def resident(self) -> float:
        return 1.0

    def say(self, line: str) -> str:
        """What comes back.

        Raises:
            MachineError: it is gone.
        """
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
            said = self.process.stdout.readline()
        except OSError:
            said = ""
        if not said:
            raise MachineError("nothing came back", "the line", "say it again")
        return "right" if said == f"{line}\n" else "wrong"


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    end(made.process)


def test_a_question_that_is_cut_off_is_asked_again_of_the_next_server(echo: Echo) -> None:
    run = KilledOnce(echo, 2)
    for number in range(2):
        run.ask(lambda number=number: echo.say(str(number)))  # type: ignore[misc]
    assert run._killing is not None
    run._killing.join()
    echo.process.kill()  # as if it had been at work when the kill came
    echo.process.wait()
    tried: list[int] = []

    def third() -> str:
        tried.append(len(tried))
        if len(tried) == 2:
            echo.start()
        return echo.say("2")

    run.ask(third)
    assert (run.finish(), run.outcomes, run.told) == ([], Counter(right=3), Counter({"nothing came back": 1}))
    assert echo.kills == 1 and len(tried) == 2
    assert "3 answers in 7 s: 3 right" in run.lines(7.0)


def test_nobody_waits_for_a_server_that_does_not_start_again() -> None:
    echo = Echo(broken=True)
    run = KilledOnce(echo, 1)
    run.ask(lambda: echo.say("0"))
    run.ask(lambda: echo.say("1"))
    (fault,) = run.finish()
    assert "did not start again" in fault and "no room" in fault
    assert run.outcomes == Counter(right=1, lost=1)


def test_a_kill_that_came_to_nothing_is_told(echo: Echo) -> None:
    run = KilledOnce(echo, 2)
    run.ask(lambda: echo.say("0"))
    (fault,) = run.finish()
    assert "not killed" in fault
    assert KilledOnce(echo, 0).finish() == []
    idle = KilledOnce(echo, 1)
    idle.ask(lambda: echo.say("0"))
    (fault,) = idle.finish()
    assert "cut nothing off" in fault


def test_memory_is_a_slope_of_all_readings_but_the_first() -> None:
    assert slope([9.0, 1.0, 3.0]) == "+2.00 MB a hundred"
    assert slope([1.0, 2.0]) == "too few readings"
