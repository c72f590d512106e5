"""``edgeproof push``: a verified package and its model card onto the model hub."""

from __future__ import annotations

import argparse

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

NOTE = """\
The token is HF_TOKEN or the one of `hf auth login`; HF_ENDPOINT names another hub. A package whose check did not pass is not
pushed unless --force says so; its card says so too.

"""


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Upload a verified package to the model hub, with a model card.", NOTE)
    made.add_argument("repository", metavar="USER/NAME", help="where to; made when it is not there")
    flags.package(made)
    made.add_argument("--private", action="store_true", help="a repository that nobody else sees")
    made.add_argument("--force", action="store_true", help="push what was not verified, or beside something else")
    made.add_argument("--dry-run", action="store_true", help="print the model card and stop; nothing is sent")
    flags.json_result(made)
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    from export.publish.card import card
    from export.publish.push import Destination, push
    from runtime_py.hub.client import require_client
    from runtime_py.hub.reference import repository
    from runtime_py.package import read

    if options.dry_run:
        require_client("a model card cannot be written")
        text = card(read(options.package), repository(options.repository))
        if options.json:
            console.out_json({"repository": options.repository, "card": text})
        else:
            console.out(text.rstrip("\n"))
        return ExitCode.OK
    pushed = push(options.package, Destination(options.repository, options.private), options.force)
    if options.json:
        console.out_json(pushed.to_json())
    else:
        console.out(pushed.url)
    return ExitCode.OK


COMMAND = Command(parser, _run)
