"""Every command that a page for users shows, read by the parser of its program: no flag, verb or choice is stale."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from parity_tests.check.unread_flags import refuse_unread
from parity_tests.end_to_end.command_lines_test import PARSERS
from parity_tests.end_to_end.docs_test import PAGES, ROOT, name

SHOWN = re.compile(r"^ {4,}(?:- )?((?:edgeproof|python -m|optimum-cli export) .*)$", re.MULTILINE)
MODULES = {
    "export": "edgeproof export",
    "calibrate": "edgeproof calibrate",
    "runtime_py": "edgeproof",
    "parity_tests": "edgeproof parity",
    "targets": "edgeproof targets",
}
USERS = [
    page for page in PAGES if page.parent == ROOT or ("results" not in page.parts and page.is_relative_to(ROOT / "docs"))
]
OPTIONAL = ("[", "VERB")
"""Lines that show what may be given, and are no command."""


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """(program, its arguments) of every line of code that calls a program of ours."""
    found = []
    for line in SHOWN.findall(page.read_text(encoding="utf-8")):
        words = shlex.split(line, comments=True)
        if words[0] == "optimum-cli":
            words = ["edgeproof", "export", *words[3:]]
        elif words[0] == "python":
            if words[2] not in MODULES:
                continue
            words = [*MODULES[words[2]].split(), *words[3:]]
        if any(word.startswith(OPTIONAL) for word in words):
            continue
        words = words[: words.index(">")] if ">" in words else words
        if words[1] == "export" and f"edgeproof {words[2]}" in PARSERS:
            words.remove("export")
        size = 3 if " ".join(words[:3]) in PARSERS else 2
        found.append((" ".join(words[:size]), words[size:]))
    return found


@pytest.mark.parametrize("page", USERS, ids=name)
def test_shown_commands_are_understood(page: Path) -> None:
    for prog, arguments in commands(page):
        options = PARSERS[prog].read(arguments)
        if prog == "edgeproof parity":
            refuse_unread(PARSERS[prog], options)


def test_enough_of_them_are_looked_at() -> None:
    counts = {name(page): len(commands(page)) for page in USERS}
    assert counts["README.md"] >= 8
    assert counts["docs/calibration.md"] >= 10
    assert sum(counts.values()) > 60
