"""``edgeproof new-family``: the files of a new family, begun as a working copy of another one."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from runtime_py.command import console, flags, pages
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, UsageError

log = logging.getLogger("edgeproof")


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m export.new_family``: returns the exit code."""
    return execute(COMMAND, "python -m export.new_family", arguments)


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Begin a new family as a working copy of another one (docs/adding_a_family.md).")
    made.add_argument("name", metavar="NAME", help="name of the new family, e.g. my-vlm")
    made.add_argument("--like", required=True, metavar="MODEL", help="family to begin from, e.g. minicpm-v; required")
    made.add_argument("--hub-id", metavar="ORG/NAME", help="its published checkpoint")
    made.add_argument("--outside", type=Path, metavar="DIR", help="make a distribution of its own in this folder")
    flags.json_result(made)
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    from export.families.names import did_you_mean_model, find
    from export.families.registry import families
    from export.new_family import ROOT, NewFamily, write

    like = find(options.like)
    if like is None:
        raise UsageError(f"--like {options.like} is no family", ", ".join(families()), did_you_mean_model(options.like))
    hub_id = options.hub_id or f"your-organisation/{options.name}"
    new = NewFamily(options.name, like.family, hub_id, options.outside is not None)
    written = write(new, options.outside or ROOT)
    if options.json:
        console.out_json({"family": new.name, "files": [str(path) for path in written]})
    else:
        console.out("\n".join(map(str, written)))
    log.info("next: docs/adding_a_family.md, from step 2 on")
    for line in pages.where("docs/adding_a_family.md"):
        log.info("  %s", line)
    return ExitCode.OK


COMMAND = Command(parser, _run)
