"""``python -m targets``: the targets, what each contains and needs, its precisions, the devices, and what fits them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "List targets, devices, and which published models fit them.")
    made.add_argument("--brief", action="store_true", help="without what each family's layers cannot hold")
    flags.json_result(made)
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    from export.plan.listing import as_json, as_text

    if options.json:
        console.out_json(as_json(not options.brief))
    else:
        console.out(as_text(not options.brief))
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the listing; returns the exit code."""
    return execute(COMMAND, "python -m targets", arguments)


if __name__ == "__main__":
    sys.exit(main())
