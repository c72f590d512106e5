"""``python -m targets``: the targets, what each contains and needs, its precisions, the devices, and what fits them."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode
from targets.registry import target_named, targets

log = logging.getLogger("edgeproof")


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "List targets, devices, and which published models fit them.")
    made.add_argument("targets", nargs="*", metavar="TARGET", help="only these, in full; default: all, in short")
    made.add_argument("--brief", action="store_true", help="without published models and what they take")
    flags.json_result(made)
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    from export.plan.listing import as_json, as_text

    chosen = [target_named(name) for name in options.targets] or list(targets().values())
    in_full = bool(options.targets)
    models = not options.brief
    if models and find_spec("torch") is None:
        models = False
        log.warning("which published models fit is left out: it takes the extra 'export' (pip install 'edgeproof[export]')")
    if options.json:
        console.out_json(as_json(chosen, models))
    else:
        console.out(as_text(chosen, models, in_full))
        if not in_full:
            log.info("more of one, and where its figures come from: name it, as in `edgeproof targets android`")
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the listing; returns the exit code."""
    return execute(COMMAND, "python -m targets", arguments)


if __name__ == "__main__":
    sys.exit(main())
