"""The command line: light, plain errors, stable exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from export.__main__ import main
from export.command.cli import VERBS, kebab

HEAVY = ("torch", "onnx", "onnxruntime", "tvm", "tensorrt", "tensorrt_rtx", "transformers", "numpy")


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, check=False)


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, runpy\n"
        "sys.argv = ['export', '--help']\n"
        "try:\n    runpy.run_module('export', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    result = run("-c", script)
    assert result.returncode == 0, result.stderr
    assert "--target TARGET" in result.stdout


def test_snake_case_flags_are_taken() -> None:
    assert kebab(["--prefill_chunk", "64", "--block_size=32", "-o", "a_b", "--model", "my_model"]) == [
        "--prefill-chunk", "64", "--block-size=32", "-o", "a_b", "--model", "my_model",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "--model"),
        (["--model", "minicpm-v", "--target", "toaster"], 2, "there is no such target"),
        (["--model", "minicpm-v", "--target", "cpu", "--contxt", "3"], 2, "--contxt"),
        (["--model", "minicpm-v", "--target", "cpu", "--context", "many"], 2, "--context"),
        (["--model", "minicpm-v", "--target", "cpu", "--precision", "int3"], 2, "--precision int3"),
    ],
)
def test_wrong_flags_are_one_message_with_three_parts(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert printed.err.count("error:") == 1
    assert "  expected: " in printed.err
    assert "  next: " in printed.err
    assert "Traceback" not in printed.err


def test_every_module_of_a_verb_is_a_package_of_this_repository() -> None:
    root = Path(__file__).parents[2]
    assert {package for package, _ in VERBS.values() if (root / package / "__init__.py").is_file()} == {
        package for package, _ in VERBS.values()
    }


def test_console_command_leads_to_the_verbs() -> None:
    start = "from export.command.cli import edgeproof; edgeproof()"
    helped = run("-c", start)
    assert helped.returncode == 0
    assert "targets" in helped.stdout
    listed = run("-c", start, "targets", "--brief")
    assert listed.returncode == 0, listed.stderr
    assert "desktop-gpu" in listed.stdout
    unknown = run("-c", start, "fly")
    assert unknown.returncode == 2
    assert "there is no such verb" in unknown.stderr
