"""Where two GPTQs part on a real model: at the layers in which one row is a thousand times larger than all others.

    python -m parity_tests.laboratory.real_model.massive_rows --work DIR [--theirs NAME] [--ours NAME] [--tokens N]

DIR is the page's folder, the names are rows of its table of methods and libraries, measured before. For every down
projection whose first row (the first token of a prompt) has `MASSIVE` times the energy of the others, the output error is
printed of the first row and of the others; and then KL with those few layers exchanged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from calibrate.statistics.moments import Moment, output_error
from export.quantisation.codes import WeightProvider
from parity_tests.laboratory.real_model.comparison import Comparison, Replaced
from parity_tests.laboratory.real_model.work import Work
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

if TYPE_CHECKING:
    from torch import Tensor

MASSIVE = 1000.0
"""Energy of the first row over the mean of the others from which a layer counts."""

TOKENS = 2048
"""That weights are compared on."""

THEIRS, OURS = "llm-compressor GPTQ", "gptq"
"""Rows of the page's table."""

LAYER = r"layers\.\d+\.mlp\.down"
"""A block's down projection in our decoder, whose input has the massive rows."""


class Rows:
    """What one layer's input looks like: its first rows, and all others."""

    def __init__(self, columns: int) -> None:
        self.first, self.others = Moment(columns), Moment(columns)

    def add(self, rows: Tensor) -> None:
        """Rows (1, tokens, columns) of one prompt."""
        self.first.add(rows[0, :1])
        self.others.add(rows[0, 1:])

    @property
    def ratio(self) -> float:
        """Mean energy of first rows over that of the others."""
        first, others = (float(moment.diagonal.sum()) / moment.count for moment in (self.first, self.others))
        return first / others

    def lost(self, change: Tensor) -> tuple[float, float]:
        """Mean squared output error of a changed weight: of a first row, of another."""
        first, others = (float(output_error(change, moment).sum()) / moment.count for moment in (self.first, self.others))
        return first, others


def seen(comparison: Comparison) -> dict[str, Rows]:
    """Canonical name of every down projection to the rows that full precision gives it."""
    rows: dict[str, Rows] = {}

    def watch(name: str, columns: int) -> Rows:
        return rows.setdefault(f"decoder.{name}", Rows(columns))

    comparison.distances.watch(LAYER, lambda name, given: watch(name, given.shape[-1]).add(given))
    return rows


def tables(comparison: Comparison, theirs: str = THEIRS, ours: str = OURS) -> list[str]:
    """The two tables, Markdown."""
    full = comparison.distances.weights
    weights = {"plain rounding": comparison.of("plain rounding"), theirs: comparison.of(theirs), ours: comparison.of(ours)}
    massive = {name: rows for name, rows in seen(comparison).items() if rows.ratio >= MASSIVE}
    made = ["| layer | first row over the others | " + " | ".join(f"{name}: first, others" for name in weights) + " |"]
    made.append("|---" * (2 + len(weights)) + "|")
    for name, rows in massive.items():
        target = f"{name}.weight"
        before = full.tensor(target).float()
        lost = (rows.lost(read.tensor(target).float() - before) for read in weights.values())
        cells = " | ".join(f"{first:.3g}, {others:.3g}" for first, others in lost)
        made.append(f"| {name} | {rows.ratio:.3g} | {cells} |")
    made += ["", "| weights | KL (nats) | median KL |", "|---|---|---|"]
    for name, read in exchanged(weights, full, theirs, ours, [f"{name}.weight" for name in massive]).items():
        told = comparison.distances.of(read)
        made.append(f"| {name} | {told['kl']:.4f} | {told['median_kl']:.4f} |")
    return made


def exchanged(
    weights: Mapping[str, WeightProvider], full: WeightProvider, theirs: str, ours: str, targets: Sequence[str]
) -> dict[str, WeightProvider]:
    """Theirs and ours as they are, and each with the massive layers of the other and of full precision."""
    made: dict[str, WeightProvider] = {theirs: weights[theirs], ours: weights[ours]}
    others = {"full precision": full, **weights}
    for base, other in ((theirs, "full precision"), (theirs, "plain rounding"), (theirs, ours), (ours, theirs)):
        parts = {target: others[other].tensor(target) for target in targets}
        made[f"{base}, these layers of {other}"] = Replaced(weights[base], parts)
    return made


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Show where two methods of one real model part.")
    made.add_argument("--work", type=Path, required=True, metavar="DIR", help="the page's folder")
    made.add_argument("--theirs", default=THEIRS, metavar="NAME", help="a row of a library")
    made.add_argument("--ours", default=OURS, metavar="NAME", help="a row of ours")
    made.add_argument("--tokens", type=int, default=TOKENS, help="that are compared on (default %(default)s)")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    comparison = Comparison(Work(given.work.resolve(), 0, given.tokens))
    for line in tables(comparison, given.theirs, given.ours):
        console.out(line)
    return ExitCode.OK


COMMAND = Command(parser, _run)


if __name__ == "__main__":
    sys.exit(execute(COMMAND, "python -m parity_tests.laboratory.real_model.massive_rows"))
