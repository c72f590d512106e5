"""``python -m parity_tests --matrix``: which cells, where they are done, one table and an exit code."""

from __future__ import annotations

import argparse
from dataclasses import astuple
from typing import TYPE_CHECKING

from export.cluster import flags as cluster
from runtime_py.command import console, flags
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

if TYPE_CHECKING:
    from parity_tests.check.matrix import Cell


def add_flags(made: Parser) -> None:
    """Which cells, and where they are done."""
    group = made.add_argument_group("--matrix")
    group.add_argument("--families", metavar="LIST", help="comma-separated; default all")
    group.add_argument("--targets", metavar="LIST", help="default cpu,android,desktop-gpu")
    group.add_argument("--precisions", metavar="LIST", help="default fp32,fp16,int4")
    group.add_argument("--markdown", type=flags.file_to_write, metavar="FILE", help="write the table here")
    cluster.add(group, "cells")


def run(options: argparse.Namespace) -> int:
    """Do the cells, print each as it is done, write what was asked for in the order of the table."""
    from parity_tests.check import matrix
    from parity_tests.report.text_file import write as write_text

    asked = [
        tuple(filter(None, (given or "").split(","))) for given in (options.families, options.targets, options.precisions)
    ]
    show = console.say if options.json else console.out
    jobs = matrix.jobs(*asked)
    done = {}
    for cell in matrix.run_matrix(jobs, cluster.executor_of(options), cluster.results_of(options, matrix.FORM)):
        done[matrix.place_of(cell)] = cell
        show(_line(cell))
    cells = [done[job.given] for job in jobs]
    verdict = matrix.verdict_of(cells)
    show(f"verdict: {verdict}")
    text = matrix.to_json(cells)
    if options.json:
        console.out(text.rstrip())
    if options.json_file is not None:
        write_text(options.json_file, text)
    if options.markdown is not None:
        write_text(options.markdown, matrix.markdown(cells))
    codes = {matrix.Status.PASS: ExitCode.OK, matrix.Status.FAIL: ExitCode.PARITY_FAILED}
    return int(codes.get(verdict, ExitCode.ENVIRONMENT))


def _line(cell: Cell) -> str:
    family, checkpoint, target, precision, status, detail, seconds = astuple(cell)
    return f"{family:14} {checkpoint:14} {target:12} {precision:5} {status:9} {seconds:6.1f} s  {detail}"
