"""Flags that a way of comparing does not read are refused: who gave one believes that it counted."""

from __future__ import annotations

import argparse

from runtime_py.command.parser import Parser
from runtime_py.errors import UsageError

SERVER = "--server"
OF_A_SERVER = {"server", "api_key_file", "reference", "calibration", "steps", "trust"}
"""Of the flags of ``--package``, those that count where a server is asked in its place."""

UNREAD = {
    "--matrix": {"thresholds", "preset", "report_dir"},
    "--mlc-golden": {"thresholds", "preset", "report_dir"},
    "--second-opinion": {"preset"},
}
"""Flags of all ways that one does not read."""

NEEDED = {"samples": "data", "question": "data", "api_key_file": "server"}
"""Flags that say more of another one."""


def refuse_unread(made: Parser, options: argparse.Namespace) -> None:
    """Nothing where every flag that was given counts.

    Args:
        made: the parser of ``options``; its groups are called like the ways of comparing.

    Raises:
        UsageError: a flag of another way, or one that says more of a flag that is not there.
    """
    ways = ("--golden", "--mlc-golden", "--second-opinion", "--matrix", SERVER, "--package")
    way = next(way for way in ways if getattr(options, _dest(way)))
    for group in made._action_groups:
        own = group.title == ("--package" if way == SERVER else way)
        of_a_way = (group.title or "").startswith("--")
        for action in group._group_actions:
            counts = (own or not of_a_way) and action.dest not in UNREAD.get(way, ())
            if way == SERVER and own:
                counts = action.dest in OF_A_SERVER
            if not counts and _given(action, options):
                raise UsageError(f"{_shown(action, options)} with {way}", "a flag that counts there", "leave it out")
    for action in made._actions:
        needed = NEEDED.get(action.dest)
        if needed is not None and _given(action, options) and not getattr(options, needed):
            flag = "--" + needed
            raise UsageError(f"{_shown(action, options)} without {flag}", flag, f"add {flag}, or leave it out")


def _dest(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _given(action: argparse.Action, options: argparse.Namespace) -> bool:
    return action.dest != argparse.SUPPRESS and bool(getattr(options, action.dest, action.default) != action.default)


def _shown(action: argparse.Action, options: argparse.Namespace) -> str:
    """As it was typed: two flags may set one value."""
    return f"--{options.preset}" if action.dest == "preset" else action.option_strings[-1]
