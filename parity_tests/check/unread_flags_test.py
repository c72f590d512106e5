"""A flag that a way of comparing does not read is refused before anything runs, and what each way reads is taken."""

from __future__ import annotations

import pytest

from parity_tests.check.unread_flags import refuse_unread
from parity_tests.cli import PROG, main, parser
from runtime_py.errors import ExitCode


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--package out --server http://h --data mine", "--data with --server"),
        ("--package out --server http://h --task 5", "--task with --server"),
        ("--golden x --target cpu --precision fp32 --steps 3", "--steps with --golden"),
        ("--golden x --server http://h", "--server with --golden"),
        ("--package out --target cpu", "--target with --package"),
        ("--package out --model minicpm-v", "--model with --package"),
        ("--matrix --precision fp32", "--precision with --matrix"),
        ("--matrix --release", "--release with --matrix"),
        ("--mlc-golden x --report-dir report", "--report-dir with --mlc-golden"),
        ("--second-opinion --checkpoint x --strict", "--strict with --second-opinion"),
        ("--package out --samples 5", "--samples without --data"),
        ("--package out --question what", "--question without --data"),
        ("--package out --api-key-file keys", "--api-key-file without --server"),
    ],
)
def test_what_would_not_count_is_refused(typed: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed.split()) == ExitCode.USAGE
    assert f"error: {said}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "typed",
    [
        "--package out --reference c --calibration s --backend ort --device cpu --steps 3 --data d --samples 5 "
        "--question what --in-pieces --rebuild --task 5 --inside never --sampling engine --trust",
        "--package out --thresholds t --release --report-dir r --json",
        "--package out --server http://h --api-key-file k --reference c --calibration s --steps 3 --trust --report-dir r",
        "--golden x --target cpu --precision fp32 --thresholds t --report-dir r --json-file j -v",
        "--mlc-golden x --json-file j",
        "--second-opinion --model m --weights demo --revision r --thresholds t --report-dir r",
        "--matrix --families a --targets b --precisions c --markdown m --ray --results r --json",
    ],
)
def test_what_counts_is_taken(typed: str) -> None:
    made = parser(PROG)
    refuse_unread(made, made.read(typed.split()))
