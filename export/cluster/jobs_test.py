"""A list of jobs: whoever carries them out and in whatever order, each is done once, kept, and done again when it must be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from export.cluster.jobs import Died, Job, one_after_another, outcomes
from export.cluster.product import ROOT, Product
from export.cluster.results import Form, Results
from runtime_py.errors import MachineError, UsageError

PRODUCT = Product("a" * 64, "3.11", {"numpy": "2.0"})
FORM: Form[int] = Form(to_json=lambda value: value, from_json=int, settled=lambda value: value != 9)


@dataclass(frozen=True)
class Number:
    value: int


def square(given: Number) -> int:
    if given.value < 0:
        raise MachineError("a negative number", "none", "leave it out")
    return given.value**2


def numbers(*values: int) -> list[Job[int]]:
    return [Job(f"n{value}", square, Number(value)) for value in values]


class Backwards:
    """An executor that gives results in another order, and remembers what it was asked to do."""

    def __init__(self, dying: str = "") -> None:
        self.asked: list[str] = []
        self.dying = dying

    def __call__(self, jobs: Sequence[Job[int]]) -> Iterator[tuple[Job[int], int | Died]]:
        self.asked = [job.name for job in jobs]
        for job in reversed(jobs):
            yield job, Died("WorkerCrashedError") if job.name == self.dying else job.task(job.given)


def results(folder: Path, product: Product = PRODUCT) -> Results[int]:
    return Results(folder, FORM, product)


def test_here_the_jobs_are_done_in_order() -> None:
    assert [(o.job.name, o.result, o.kept) for o in outcomes(numbers(2, 1))] == [("n2", 4, False), ("n1", 1, False)]


def test_a_second_run_does_what_the_first_did_not_finish(tmp_path: Path) -> None:
    first = list(outcomes(numbers(1, 2, 3, 4), Backwards(dying="n2"), results(tmp_path)))
    assert {o.job.name: o.result for o in first} == {"n4": 16, "n3": 9, "n2": Died("WorkerCrashedError"), "n1": 1}
    again = Backwards()
    second = list(outcomes(numbers(1, 2, 3, 4), again, results(tmp_path)))
    assert again.asked == ["n2", "n3"], "one died, and 9 is not settled"
    assert {o.job.name: o.kept for o in second} == {"n1": True, "n4": True, "n3": False, "n2": False}
    assert {o.result for o in second} == {1, 4, 9, 16}


def test_what_a_task_raises_ends_the_run_and_keeps_what_was_done(tmp_path: Path) -> None:
    with pytest.raises(MachineError):
        list(outcomes(numbers(1, -1, 2), one_after_another, results(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["n1.json"]


@pytest.mark.parametrize(
    "other",
    [replace(PRODUCT, digest="b" * 64), replace(PRODUCT, python="3.12"), replace(PRODUCT, libraries={"numpy": "2.1"})],
)
def test_another_product_or_library_does_every_job_again(tmp_path: Path, other: Product) -> None:
    list(outcomes(numbers(1), one_after_another, results(tmp_path)))
    again = Backwards()
    list(outcomes(numbers(1), again, results(tmp_path, other)))
    assert again.asked == ["n1"]


def test_another_input_of_the_same_name_is_another_job(tmp_path: Path) -> None:
    list(outcomes([Job("n", square, Number(1))], one_after_another, results(tmp_path)))
    for job in (Job("n", square, Number(2)), Job("n", square, Number(1), beside={"file": "stamp"})):
        assert results(tmp_path).read(job) is None
    assert results(tmp_path).read(Job("n", square, Number(1))) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"schema": 1})])
def test_a_damaged_result_is_no_result(tmp_path: Path, content: str) -> None:
    (tmp_path / "n1.json").write_text(content)
    assert [o.result for o in outcomes(numbers(1), one_after_another, results(tmp_path))] == [1]
    assert results(tmp_path).read(numbers(1)[0]) == 1


def test_one_name_for_two_jobs_and_a_file_for_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="n1"):
        list(outcomes(numbers(1, 1)))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        results(tmp_path / "file")


@pytest.mark.parametrize(
    "module", ["parity_tests.check.matrix", "calibrate.command.compare_cli", "export.cluster.ray_executor"]
)
def test_ray_is_imported_by_nothing_but_its_use(module: str) -> None:
    code = f"import sys; sys.modules['ray'] = None; import {module}"
    done: Any = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
