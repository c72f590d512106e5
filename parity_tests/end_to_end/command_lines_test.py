"""Every program's flags, held against docs/cli.md and against each other."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from calibrate.command.cli import main as calibrate
from export.__main__ import main as export
from export.__main__ import root
from parity_tests.cli import main as parity
from runtime_py.command.cli import main as runtime
from runtime_py.command.dispatch import Command
from runtime_py.command.parser import Parser
from targets.__main__ import main as targets

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "cli.md"
EVERYWHERE = {"help", "version", "verbose", "quiet"}
HEAVY = ("torch", "onnx", "onnxruntime", "tvm", "tensorrt", "tensorrt_rtx", "transformers", "numpy", "PIL", "tokenizers")


def commands(branch: Command, prog: str) -> Iterator[tuple[str, Parser]]:
    """Every command with flags, as it is typed."""
    if branch.parser is not None:
        yield prog, branch.parser(prog)
    for verb in branch.verbs:
        yield from commands(verb.load(), f"{prog} {verb.name}")


PARSERS = dict(commands(root(), "edgeproof"))


def shown(action: argparse.Action) -> str:
    """An action as the first cell of a row says it."""
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    values = action.metavar or "|".join(map(str, action.choices or ()))
    value = "" if action.nargs == 0 else f" [{values}]" if action.nargs == "?" else f" {values}"
    *shorter, last = action.option_strings
    return ", ".join([*(f"`{flag}`" for flag in shorter), f"`{last}{value}`"])


def documented() -> dict[str, dict[str, str]]:
    """The rows of the first table of every section that is called like a command: first cell to second."""
    text = PAGE.read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    flags = {}
    for section in sections:
        title, _, body = section.partition("\n")
        table = re.search(r"^\| flag \| meaning \|\n\|---\|---\|\n((?:\|.*\n)*)", body, flags=re.MULTILINE)
        cells = [re.split(r"(?<!\\)\|", row) for row in ([] if table is None else table[1].splitlines())]
        flags[title.strip("`")] = {row[1].strip().replace(r"\|", "|"): row[2].strip() for row in cells}
    return flags


@pytest.mark.parametrize("prog", PARSERS)
def test_the_page_lists_the_flags_that_the_parser_has(prog: str) -> None:
    own = [action for action in PARSERS[prog]._actions if action.dest not in EVERYWHERE and action.help != argparse.SUPPRESS]
    assert sorted(documented()[prog]) == sorted(map(shown, own))


@pytest.mark.parametrize("prog", PARSERS)
def test_the_page_says_which_flags_are_required(prog: str) -> None:
    own = [action for action in PARSERS[prog]._actions if action.option_strings and action.help != argparse.SUPPRESS]
    said = {flag for flag, meaning in documented()[prog].items() if meaning.endswith("; required")}
    assert said == {shown(action) for action in own if action.required}


def test_the_page_lists_no_other_program_and_the_common_flags() -> None:
    titles = {title for title in documented() if title.startswith("edgeproof")}
    assert titles == set(PARSERS)
    common = {shown(action) for action in Parser("x", "")._actions} | {"`-v`, `--verbose`", "`-q`, `--quiet`"}
    assert set(documented()["Flags of every program"]) == common


@pytest.mark.parametrize("prog", PARSERS)
def test_flags_that_all_share_mean_the_same(prog: str) -> None:
    made = PARSERS[prog]
    by_flag = {flag: action for action in made._actions for flag in action.option_strings}
    assert by_flag["--verbose"] is by_flag["-v"] and by_flag["--quiet"] is by_flag["-q"]
    assert by_flag["--version"].version.startswith("edgeproof ")  # type: ignore[attr-defined]
    if "--json" in by_flag:
        assert by_flag["--json"].nargs == 0, "--json prints; a file is --json-file or --output"
    if "--package" in by_flag:
        assert by_flag["--package"] is by_flag["-p"]
    if "--output" in by_flag:
        assert by_flag["--output"] is by_flag["-o"]
    if "--seed" in by_flag:
        assert "-1 draws one" in str(by_flag["--seed"].help)
    assert made.format_usage().startswith(f"usage: {prog} ")


def test_there_is_one_parser_class_and_one_error_printer() -> None:
    """The laboratory's programs too."""
    packages = ("runtime_py", "targets", "export", "calibrate", "parity_tests")
    files = [path for package in packages for path in (REPOSITORY / package).rglob("*.py")]
    texts = {path: path.read_text(encoding="utf-8") for path in files if path != Path(__file__)}
    own = {path.name for path, text in texts.items() if re.search(r"ArgumentParser\(|print_exc\(", text)}
    assert own == {"completions.py"}, "which joins all parsers to one for the shells' scripts"


def test_help_imports_nothing_heavy() -> None:
    """Every --help of every program in one process."""
    script = (
        "import sys\nfrom export.__main__ import root\n"
        "def show(branch):\n"
        "    if branch.parser:\n        branch.parser('x').format_help()\n"
        "    for verb in branch.verbs:\n        show(verb.load())\n"
        f"show(root())\nprint(sorted({set(HEAVY)!r} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("main", [export, calibrate, parity, runtime, targets])
@pytest.mark.parametrize("arguments", [["--no-such-flag"], ["no-such-verb"], ["--vresion"]])
def test_every_program_refuses_in_three_parts(main, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [line.partition(":")[0] for line in printed.err.splitlines()] == ["error", "  expected", "  next"]


def test_links_of_the_page_lead_to_its_sections() -> None:
    text = PAGE.read_text(encoding="utf-8")
    titles = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= anchors
