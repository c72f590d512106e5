"""Every exception as one message of three parts."""

from __future__ import annotations

import errno

import pytest

from runtime_py.command.failure import PART_CHARACTERS, PART_LINES, explained, message, report
from runtime_py.errors import CheckpointError, EdgeproofError, ExitCode, UsageError


def parts(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("    ")]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (CheckpointError("a", "b", "c"), ExitCode.USAGE, "error: a"),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "stopped"),
        (MemoryError(), ExitCode.DOES_NOT_FIT, "out of memory"),
        (ModuleNotFoundError("No module named 'onnx.helper'", name="onnx.helper"), ExitCode.ENVIRONMENT, "edgeproof[onnx]"),
        (ImportError("libtvm.so: no such file", name="tvm"), ExitCode.ENVIRONMENT, "libtvm.so"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), ExitCode.ENVIRONMENT, "/data/x: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "/models/x"), ExitCode.ENVIRONMENT, "/models/x"),
        (
            ModuleNotFoundError("No module named 'mine'", name="mine"),
            ExitCode.INTERNAL,
            "internal error, ModuleNotFoundError",
        ),
        (ZeroDivisionError("division by zero"), ExitCode.INTERNAL, "internal error, ZeroDivisionError: division by zero"),
        (RecursionError("too deep"), ExitCode.INTERNAL, "internal error, RecursionError"),
    ],
)
def test_every_exception_has_three_parts_and_a_code(
    error: BaseException, code: ExitCode, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error) == code
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
    assert [line.split(":")[0] for line in parts(printed.err)] == ["error", "  expected", "  next"]
    assert words in printed.err


def test_an_internal_error_says_how_to_see_more_and_then_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise KeyError("\x1b[2Jx")

    for verbosity, shown in ((0, False), (1, False), (2, True)):
        with pytest.raises(KeyError) as caught:
            broken()
        assert report(caught.value, verbosity) == ExitCode.INTERNAL
        printed = capsys.readouterr().err
        assert ("Traceback (most recent call last)" in printed and "in broken" in printed) is shown
        assert "-vv" in printed and "\x1b" not in printed


def test_long_parts_are_cut_and_counted() -> None:
    long = message(UsageError("x" * 1_000_000, "\n".join(map(str, range(500))), "y"))
    assert len(long) < 3 * PART_CHARACTERS
    assert f"({1_000_000 - PART_CHARACTERS:,} characters left out" in long
    assert f"(and {500 - PART_LINES} more lines" in long
    assert len(message(UsageError("x" * 1_000_000, "", ""), whole=True)) > 1_000_000


def test_a_name_cannot_forge_a_part() -> None:
    forged = message(UsageError("tensor a\n  next: run this", "b", "c"))
    assert parts(forged) == ["error: tensor a", "  expected: b", "  next: c"]
    assert "      next: run this" in forged


def test_known_errors_stay_what_they_are() -> None:
    error = EdgeproofError("a", "b", "c")
    assert explained(error) is error
