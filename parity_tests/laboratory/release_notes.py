"""Notes of a release: a version's section of CHANGELOG.md, for the tag that names the version.

    python -m parity_tests.laboratory.release_notes v0.2.0

Refuses a tag that is not the version of the code, and a changelog without a section for it or with an empty one.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, UsageError
from runtime_py.version import VERSION

ROOT = Path(__file__).resolve().parents[2]


def notes(changelog: str, tag: str, version: str) -> str:
    """The text below a version's heading, without the heading.

    Raises:
        UsageError: the tag is not the version's, or the changelog does not speak of it.
    """
    if tag != f"v{version}":
        raise UsageError(f"the tag {tag}", f"v{version}, the version of the code", "set the version first, then tag")
    heading = re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d{{2}}-\d{{2}}$", changelog, re.MULTILINE)
    if heading is None:
        raise UsageError(
            f"CHANGELOG.md has no section of {version}",
            f"a heading ## [{version}] - YEAR-MONTH-DAY",
            "rename [Unreleased], see docs/releasing.md",
        )
    following = re.search(r"^## ", changelog[heading.end() :], re.MULTILINE)
    text = changelog[heading.end() :][: following.start() if following else None].strip()
    if not text:
        raise UsageError(f"the section of {version} is empty", "what users will notice", "write it")
    return text + "\n"


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Print the notes of a release: its section of CHANGELOG.md.")
    made.add_argument("tag", metavar="TAG", help="e.g. v0.2.0")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    console.out(notes((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), given.tag, VERSION).rstrip("\n"))
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the notes; returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.release_notes", arguments)


if __name__ == "__main__":
    sys.exit(main())
