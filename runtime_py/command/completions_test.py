"""Completion scripts, as shells read them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime_py.command.completions import SHELLS, command, script
from runtime_py.command.dispatch import Command, Verb, execute
from runtime_py.command.parser import Parser


def parser(prog: str) -> Parser:
    made = Parser(prog, "Works.")
    made.add_argument("--target", metavar="TARGET", help="where to")
    made.add_argument("-o", "--output", metavar="DIR", help="folder")
    made.rename("--out", "--output")
    return made


WORDS = {"TARGET": ["cpu", "android"]}
INNER = Command(parser, lambda options: 0)
OUTER = Command(parser, lambda options: 0, verbs=(Verb("deep", "deeper", lambda: INNER),))
ROOT = Command(summary="Several things.", verbs=(Verb("work", "do it", lambda: OUTER),))


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_verbs_flags_and_names(shell: str) -> None:
    pytest.importorskip("shtab")
    text = script(ROOT, "tool", shell, WORDS)
    for word in ("work", "deep", "target", "android", "output"):
        assert word in text
    assert "--out " not in text
    if shutil.which(shell):
        done = subprocess.run([shell, "-n"], input=text, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["wo"], {"work"}),
        (["work", "--tar"], {"--target"}),
        (["work", "--target", "a"], {"android"}),
        (["work", "d"], {"deep"}),
    ],
)
def test_bash_completes(line: list[str], words: set[str], tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    (tmp_path / "tool.bash").write_text(script(ROOT, "tool", "bash", WORDS))
    asking = (
        'source "$1"; shift; COMP_WORDS=(tool "$@"); COMP_CWORD=$#; COMPREPLY=();'
        "$(complete -p tool | sed 's/.*-F \\([^ ]*\\).*/\\1/'); printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "-c", asking, "bash", str(tmp_path / "tool.bash"), *line], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == words


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    made = command(lambda: ROOT, "tool", lambda: WORDS)
    assert execute(made, "tool completions", ["bash"]) == 7
    assert "pip install 'edgeproof[completions]'" in capsys.readouterr().err
    assert execute(made, "tool completions", ["tcsh"]) == 2
