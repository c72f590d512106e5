"""The command line of `parity_tests.gpu_check`; parsing imports nothing heavy."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command
from runtime_py.command.parser import Parser


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(
        prog,
        "Run a desktop-gpu package on this machine's GPU and hold it against PyTorch on the same GPU.",
        "exit code 0 when the engines ran within tolerance, 5 outside tolerance, 7 when they did not run\n\n",
    )
    flags.package(made, what="a package exported for desktop-gpu")
    made.add_argument("--reference", type=Path, metavar="DIR", help="the checkpoint it was made from")
    made.add_argument(
        "--report-dir", type=flags.folder_to_write, metavar="DIR", help="write gpu_check.json and gpu_check.md here"
    )
    flags.json_result(made)
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from parity_tests.gpu_check import check
    from parity_tests.report.gpu_report import markdown, write

    report = check(options.package, options.reference)
    if options.report_dir is not None:
        write(report, options.report_dir)
    if options.json:
        console.out_json(asdict(report))
    else:
        console.out(markdown(report).rstrip("\n"))
    return report.exit_code


COMMAND = Command(parser, _run, level=logging.WARNING)
