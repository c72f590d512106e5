"""``edgeproof models``: which families and published checkpoints are known, and by which names."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from export.families.names import Published

NOTE = """\
Letter case, - and _ in a name do not matter: MiniCPM-V-2, minicpm_v_2.0 and openbmb/minicpm-v2 are one checkpoint.
A family with a demo has a small trained checkpoint that comes along: --weights demo.

"""


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "List the families that can be exported, their published checkpoints and names.", NOTE)
    made.add_argument("name", nargs="?", metavar="NAME", help="say which checkpoint a --model of this name stands for")
    flags.json_result(made)
    flags.talk(made)
    return made


def listing() -> list[dict[str, Any]]:
    """A row for every family."""
    from export.families.names import published
    from export.families.registry import families
    from export.source.hub import demos

    return [
        {
            "family": family.name,
            "aliases": list(family.aliases),
            "checkpoints": [_row(one) for one in published() if one.family is family],
            "licence": family.licence,
            "demo": family.name in demos(),
        }
        for family in families().values()
    ]


def _row(one: Published) -> dict[str, Any]:
    return {"hub_id": one.hub_id, "variant": one.variant}


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The listing for people."""
    width = max((len(one["hub_id"]) for row in rows for one in row["checkpoints"]), default=0)
    for row in rows:
        names = ", ".join((row["family"], *row["aliases"]))
        yield f"{names}{': with a demo checkpoint' if row['demo'] else ''}"
        for number, one in enumerate(row["checkpoints"]):
            what = one["variant"] + ("" if number or len(row["checkpoints"]) == 1 else ", which the name stands for")
            yield f"  {one['hub_id']:{width}}  {what}".rstrip()
        yield f"  licence: {row['licence']}"
        yield ""


def _run(options: argparse.Namespace) -> int:
    if options.name is not None:
        return _say_what(options.name, options.json)
    rows = listing()
    if options.json:
        console.out_json({"models": rows})
    else:
        console.out("\n".join(lines(rows)).rstrip())
    return ExitCode.OK


def _say_what(name: str, as_json: bool) -> int:
    from export.families.names import did_you_mean_model, find

    one = find(name)
    if one is None:
        raise UsageError(f"{name} is no published checkpoint that is known here", "a name of one", did_you_mean_model(name))
    if as_json:
        console.out_json({"family": one.family.name, **_row(one)})
    else:
        console.out(f"{one.hub_id}: {one.family.name} {one.variant}")
    return ExitCode.OK


COMMAND = Command(parser, _run)
