"""``bench --peers``: a package beside other runtimes, and beside its own figures of before."""

from __future__ import annotations

import argparse
import os

from runtime_py.command import console
from runtime_py.command.dispatch import ExitCode
from runtime_py.errors import UsageError
from runtime_py.files.json_file import MEGABYTE, read_json
from runtime_py.peers.compare import Comparison, compare, lines
from runtime_py.peers.history import SLOWER, against, append
from runtime_py.peers.plot import svg
from runtime_py.peers.worker import ENGINES, OWN

ALL, NONE = "all", "none"


def comparison_of(options: argparse.Namespace) -> Comparison:
    """What the flags ask for; threads are the cores where none are given.

    Raises:
        UsageError: a number or a name that is none.
    """
    try:
        lengths = tuple(int(length) for length in options.lengths.split(","))
    except ValueError as error:
        raise UsageError(f"--lengths {options.lengths}", "whole numbers and commas", "such as 64,1024") from error
    named = tuple(name for name in options.peers.split(",") if name)
    if named == (ALL,):
        named = tuple(name for name in ENGINES if name != OWN)
    return Comparison(
        folder=options.package,
        peers=() if named == (NONE,) else named,
        threads=options.threads or os.cpu_count() or 1,
        rounds=options.runs,
        prompt_tokens=options.prompt_tokens,
        lengths=lengths,
        new_tokens=options.new_tokens,
        python=options.peer_python,
        chunk=options.chunk,
        trust=options.trust,
    )


def run(options: argparse.Namespace) -> int:
    """Measure, print, keep."""
    told = compare(comparison_of(options))
    if options.against is not None:
        told["against"] = against(told, read_json(options.against, MEGABYTE))
    if options.plot is not None:
        options.plot.write_text(svg(told), encoding="utf-8")
    if options.history is not None:
        append(options.history, told, options.label)
    if options.json:
        console.out_json(told)
        return ExitCode.OK
    console.out("\n".join(lines(told)))
    for figure, ratio in told.get("against", {}).items():
        note = ", slower" if ratio < SLOWER else ""
        console.out(f"{figure}: {ratio:.2f} of the rate in {options.against}{note}")
    return ExitCode.OK
