"""The command line of the parity tests; parsing imports nothing heavy."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from parity_tests.judging import stored_runs
from runtime_py.backends.registry import runtime_backends
from runtime_py.errors import EdgeproofError, ExitCode, UsageError

EXAMPLES = """\
examples:
  python -m parity_tests --package out
  python -m parity_tests --package out --reference ./checkpoint --report-dir report
  python -m parity_tests --golden parity_tests/goldens/minicpm-v --target cpu --precision fp32
  python -m parity_tests --mlc-golden parity_tests/goldens/mlc-llama
  python -m parity_tests --matrix --targets cpu --precisions fp32,int4
  python -m parity_tests judge report --thresholds mine.toml --report-dir again
  python -m parity_tests diff report_before report_after

exit codes: 0 within tolerance, 2 usage, 3 unsupported model, 5 outside tolerance, 7 environment
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `UsageError`."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, "flags as listed by --help", f"run `{self.prog} --help`")


def parser() -> argparse.ArgumentParser:
    """The flags of ``python -m parity_tests``."""
    made = Parser(
        prog="python -m parity_tests",
        description="Compare a package with the PyTorch reference, or with arrays of the published code.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--package", type=Path, metavar="DIR", help="a package to hold against its reference")
    what.add_argument("--golden", type=Path, metavar="DIR", help="a golden case to export, run and compare")
    what.add_argument("--mlc-golden", type=Path, metavar="DIR", help="packages of MLC's own converter, byte for byte")
    what.add_argument("--matrix", action="store_true", help="families x targets x precisions on the small checkpoints")
    made.add_argument("--families", metavar="LIST", help="families of --matrix, comma-separated; default all")
    made.add_argument("--targets", metavar="LIST", help="targets of --matrix; default cpu,android,desktop-gpu")
    made.add_argument("--precisions", metavar="LIST", help="precisions of --matrix; default fp32,fp16,int4")
    made.add_argument("--markdown", type=Path, metavar="FILE", help="write the table of --matrix here")
    made.add_argument("--reference", type=Path, metavar="DIR", help="the checkpoint of --package")
    made.add_argument("--codes", type=Path, metavar="DIR", help="the calibration whose codes --package holds")
    made.add_argument("--backend", choices=tuple(runtime_backends()), help="run --package on this backend")
    made.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the reference of --package runs")
    made.add_argument("--steps", type=int, metavar="N", help="answer tokens per question of --package")
    made.add_argument(
        "--in-pieces", action="store_true", help="never hold a large --package in memory: about a gigabyte in all"
    )
    made.add_argument("--task", type=int, default=0, metavar="N", help="ask a demo package about N held-out pictures")
    made.add_argument(
        "--inside",
        choices=("auto", "always", "never"),
        default="auto",
        help="errors per block and costs per quantised layer in the report of --package; auto: where it is quick",
    )
    made.add_argument("--target", metavar="TARGET", help="target of --golden: cpu, android, desktop-gpu")
    made.add_argument("--precision", choices=("fp32", "fp16", "int4"), help="precision of --golden")
    made.add_argument(
        "--thresholds", type=Path, metavar="FILE", help="limits (JSON or TOML) that go before the built-in ones"
    )
    made.add_argument(
        "--report-dir",
        type=Path,
        metavar="DIR",
        help="write report.html, report.md, report.json, junit.xml and run.json here",
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write the judged probes here")
    made.add_argument("-v", "--verbose", action="store_true", help="say what is being done (stderr)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    try:
        if given[:1] == ["judge"]:
            return _judge(stored_runs.judge_parser(Parser).parse_args(given[1:]))
        if given[:1] == ["diff"]:
            return stored_runs.diff(given[1:], Parser)
        options = parser().parse_args(given)
        if options.verbose:
            logging.getLogger("edgeproof").setLevel(logging.INFO)
        command = "python -m parity_tests " + shlex.join(given)
        return _compare(options, command)
    except EdgeproofError as error:
        sys.stderr.write(f"error: {error}\n")
        return int(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return int(ExitCode.INTERRUPTED)


def _compare(options: argparse.Namespace, command: str) -> int:
    if options.matrix:
        return _matrix(options)
    if options.mlc_golden is not None:
        return _mlc_golden(options)
    return _golden(options, command) if options.golden is not None else _package(options, command)


def _table(options: argparse.Namespace):
    from parity_tests import thresholds

    return None if options.thresholds is None else thresholds.load(options.thresholds)


def _package(options: argparse.Namespace, command: str) -> int:
    from parity_tests.check.package_check import CheckOptions, check

    asked = CheckOptions(
        codes=options.codes,
        backend=options.backend,
        device=options.device,
        steps=options.steps,
        task_pictures=options.task,
        in_pieces=options.in_pieces,
        command=command,
        table=_table(options),
        details=options.report_dir is not None,
        inside={"auto": None, "always": True, "never": False}[options.inside],
    )
    result = check(options.package, options.reference, asked)
    return _report(result.judgement, options)


def _golden(options: argparse.Namespace, command: str) -> int:
    from parity_tests.golden.golden import check_golden
    from parity_tests.judging.judge import judge

    if options.target is None or options.precision is None:
        raise UsageError("--golden without --target or --precision", "both", "add e.g. --target cpu --precision fp32")
    table = _table(options)
    run = check_golden(options.golden, options.target, options.precision, command, table)
    return _report(judge(run, table), options)


def _matrix(options: argparse.Namespace) -> int:
    from parity_tests.check import matrix
    from parity_tests.report.text_file import write as write_text

    asked = [
        tuple(filter(None, (given or "").split(","))) for given in (options.families, options.targets, options.precisions)
    ]
    cells = []
    for cell in matrix.run_matrix(*asked):
        cells.append(cell)
        place = f"{cell.family:14} {cell.checkpoint:14} {cell.target:12} {cell.precision:5}"
        sys.stdout.write(f"{place} {cell.status:9} {cell.seconds:6.1f} s  {cell.detail}\n")
        sys.stdout.flush()
    failed = any(cell.status is matrix.Status.FAIL for cell in cells)
    sys.stdout.write(f"verdict: {'fail' if failed else 'pass'}\n")
    if options.json is not None:
        write_text(options.json, matrix.to_json(cells))
    if options.markdown is not None:
        write_text(options.markdown, matrix.markdown(cells))
    return int(ExitCode.PARITY_FAILED if failed else ExitCode.OK)


def _mlc_golden(options: argparse.Namespace) -> int:
    from parity_tests.golden.mlc_golden import check
    from parity_tests.report import json_report

    results = check(options.mlc_golden)
    width = max((len(result.name) for result in results), default=0)
    for result in results:
        sys.stdout.write(f"{result.name:{width}}  {result.status:5} {result.detail}\n")
    failed = [result for result in results if result.status == "fail"]
    verdict = "fail" if failed or not results else "pass"
    sys.stdout.write(f"verdict: {verdict}\n")
    if options.json is not None:
        rows = [result.to_json() for result in results]
        first = failed[0].name if failed else None
        json_report.write(options.json, {"verdict": verdict, "first_failure": first, "probes": rows})
    return int(ExitCode.OK if verdict == "pass" else ExitCode.PARITY_FAILED)


def _judge(options: argparse.Namespace) -> int:
    from parity_tests.judging.judge import judge
    from parity_tests.judging.results import read

    return _report(judge(read(options.run), _table(options)), options)


def _report(judgement, options: argparse.Namespace) -> int:
    """Print, write what was asked for, and turn the verdict into an exit code."""
    from parity_tests.judging.judge import Verdict
    from parity_tests.report import console_report, html_report, json_report, junit_report, markdown_report

    verbose = getattr(options, "verbose", False)
    golden = any(judged.comparison.name == "golden" for judged in judgement.comparisons)
    value = json_report.golden_report(judgement) if golden else json_report.report(judgement)
    sys.stdout.write(console_report.console(judgement, None if verbose else "golden" if golden else "package") + "\n")
    if options.json is not None:
        json_report.write(options.json, value)
    if options.report_dir is not None:
        json_report.write(options.report_dir / "report.json", value)
        json_report.write_run(options.report_dir / "run.json", judgement)
        markdown_report.write(options.report_dir, judgement)
        html_report.write(options.report_dir, judgement)
        junit_report.write(options.report_dir, judgement)
    if judgement.verdict is Verdict.PASS:
        return int(ExitCode.OK)
    if judgement.verdict is Verdict.NOT_RUN:
        sys.stderr.write("nothing was compared; see the lines `not run`\n")
        return int(ExitCode.ENVIRONMENT)
    return int(ExitCode.PARITY_FAILED)
