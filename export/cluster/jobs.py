"""A list of independent jobs and what becomes of each; who carries them out is an `Executor`.

One path for one machine and for many: what makes the list and what reads the outcomes does not know where the work was done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from runtime_py.errors import UsageError

if TYPE_CHECKING:
    from export.cluster.results import Results

Value = TypeVar("Value")


@dataclass(frozen=True)
class Job(Generic[Value]):
    """One call that depends on no other.

    Attributes:
        name: of its result's file, and of the job where it is told about; no other job of the list has it.
        task: a function of a module, called with ``given``.
        given: a frozen dataclass of plain values and paths; it decides the result, with the product and its libraries.
        beside: what else decides the result, as JSON: stamps of files that lie outside the product.
        gpu: an NVIDIA GPU is used where there is one.
        gigabytes: of memory at most, where that is known; 0 where it is not.
    """

    name: str
    task: Callable[[Any], Value]
    given: Any
    beside: Any = None
    gpu: bool = False
    gigabytes: float = 0.0


@dataclass(frozen=True)
class Died:
    """There is no result, because the process or the machine that worked on it ended, and did so when it was tried again."""

    why: str


@dataclass(frozen=True)
class Outcome(Generic[Value]):
    """What became of a job.

    Attributes:
        kept: taken from an earlier run of the same job.
    """

    job: Job[Value]
    result: Value | Died
    kept: bool = False


Executor = Callable[[Sequence[Job[Value]]], Iterator[tuple[Job[Value], Value | Died]]]
"""Carries out jobs and gives each with its result, in the order in which they end. What a task raises, it raises."""


def one_after_another(jobs: Sequence[Job[Value]]) -> Iterator[tuple[Job[Value], Value | Died]]:
    """In this process, in the order of the list."""
    for job in jobs:
        yield job, job.task(job.given)


def outcomes(
    jobs: Sequence[Job[Value]], executor: Executor[Value] = one_after_another, results: Results[Value] | None = None
) -> Iterator[Outcome[Value]]:
    """What becomes of every job, those with a kept result first and the others as they end.

    Args:
        results: where finished jobs are kept, and looked for; None to do every job and keep nothing.

    Raises:
        UsageError: two jobs have one name.
        Exception: what a task raises; the results so far are kept.
    """
    names = [job.name for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{twice[0]} was asked for twice", "every job once", "leave one out")
    left = []
    for job in jobs:
        before = None if results is None else results.read(job)
        if before is None:
            left.append(job)
        else:
            yield Outcome(job, before, kept=True)
    for job, result in executor(left):
        if results is not None and not isinstance(result, Died):
            results.keep(job, result)
        yield Outcome(job, result)
