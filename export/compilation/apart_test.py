"""A call in a process of its own: its answer, its error, its death, and what of this process reaches it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from export.compilation.apart import Job, call_together
from runtime_py.errors import MachineError, PackageError


def evaluated(expression: str) -> Job:
    """Of Python's own, so that the process imports nothing else."""
    return Job("builtins:eval", (expression,))


def test_every_job_is_answered_by_its_name_whatever_is_printed_before() -> None:
    printing = evaluated("""print('{"answer": {}}') or {"process": __import__("os").getpid()}""")
    made = call_together({"first": printing, "second": Job("json:loads", ('{"process": 0}',))})
    assert list(made) == ["first", "second"] and made["second"] == {"process": 0}
    assert made["first"]["process"] not in (0, os.getpid())


def test_nothing_that_configures_a_compiler_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = dict.fromkeys(("HOME", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV"), "/of/this/test")
    given = {"TVM_NUM_THREADS": "3", "PYTHONHASHSEED": "5", "PYTHONPATH": "/elsewhere"}
    for name, value in (given | found).items():
        monkeypatch.setenv(name, value)
    (seen,) = call_together({"first": evaluated("dict(__import__('os').environ)")}).values()
    assert "TVM_NUM_THREADS" not in seen and "PATH" in seen
    assert seen.items() >= found.items() and seen["PYTHONHASHSEED"] == "0"
    assert seen["PYTHONPATH"].split(os.pathsep) == [str(Path(__file__).parents[2]), "/elsewhere"]


def test_an_error_is_raised_again_in_its_three_parts() -> None:
    error = "__import__('runtime_py.errors').errors.PackageError('no package', 'another one', 'export it again')"
    with pytest.raises(PackageError) as caught:
        call_together({"first": evaluated(f"(_ for _ in ()).throw({error})")})
    parts = (caught.value.what, caught.value.expected, caught.value.next_step)
    assert parts == ("no package", "another one", "export it again")


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (Job("os:_exit", (3,)), r"the second library failed \(exit status 3\)"),
        (Job("os:_exit", (0,)), r"the second library failed \(exit status 0\)"),
        (evaluated("""print('\\n{"answer": {}}', flush=True) or __import__('os')._exit(3)"""), "exit status 3"),
        (Job("builtins:int", ("words",)), "exit status 1.*ValueError: invalid literal.*words"),
    ],
)
def test_a_process_that_dies_is_named_and_the_others_are_ended(job: Job, words: str) -> None:
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(MachineError, match=f"(?s){words}"):
        call_together({"second": job, "waiting": Job("time:sleep", (60,))})
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.skipif(sys.platform != "linux", reason="Linux lets a program choose it")
def test_the_process_has_fixed_addresses_and_dies_with_its_caller() -> None:
    """Of sys/personality.h and sys/prctl.h: ADDR_NO_RANDOMIZE, PR_GET_PDEATHSIG."""
    library = "c := __import__('ctypes'), s := c.c_int(), c.CDLL(None).prctl(2, c.byref(s))"
    fate = f"({library}, {{'persona': c.CDLL(None).personality(0xffffffff), 'signal': s.value}})[-1]"
    made = call_together({"first": evaluated(fate)})["first"]
    assert made["persona"] & 0x0040000 and made["signal"] == 9
