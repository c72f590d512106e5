"""The command line of the parity tests; parsing imports nothing heavy."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.command import model_flags
from parity_tests.check import matrix_command
from parity_tests.check.unread_flags import refuse_unread
from parity_tests.judging import stored_runs
from parity_tests.second_opinion import command as second_opinion
from runtime_py.backends.registry import runtime_backends
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, Verb, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from parity_tests.judging.judge import Judgement
    from parity_tests.judging.standards import Table

PROG = "python -m parity_tests"

EXAMPLES = """\
examples:
  {prog} --package out
  {prog} --package out --reference ./checkpoint --report-dir report
  {prog} --server http://127.0.0.1:8000 --package out
  {prog} --package out --data ./pictures --report-dir report
  {prog} --golden parity_tests/goldens/minicpm-v --target cpu --precision fp32
  {prog} --mlc-golden parity_tests/goldens/mlc-llama
  {prog} --second-opinion --model minicpm-v --weights demo
  {prog} --matrix --targets cpu --precisions fp32,int4
  {prog} --matrix --ray
  {prog} judge report --thresholds mine.toml --report-dir again
  {prog} diff report_before report_after

"""


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m parity_tests``: returns the exit code."""
    return execute(COMMAND, PROG, arguments)


def parser(prog: str) -> Parser:
    """The flags."""
    description = "Compare a package with the PyTorch reference, or with arrays of the published code."
    made = Parser(prog, description, EXAMPLES.format(prog=prog))
    what = made.add_mutually_exclusive_group(required=True)
    flags.package(what, required=False, what="a package to hold against its reference")
    what.add_argument("--golden", type=Path, metavar="DIR", help="a golden case to export, run and compare")
    what.add_argument("--mlc-golden", type=Path, metavar="DIR", help="packages of MLC's own converter, byte for byte")
    what.add_argument("--second-opinion", action="store_true", help="a checkpoint's reference against transformers")
    what.add_argument("--matrix", action="store_true", help="families x targets x precisions on the small checkpoints")
    _package_flags(made.add_argument_group("--package"))
    golden = made.add_argument_group("--golden")
    golden.add_argument("--target", metavar="TARGET", help="cpu, android or desktop-gpu")
    golden.add_argument("--precision", choices=("fp32", "fp16", "int4"), help="of the package that is made")
    second_opinion.add_flags(made)
    matrix_command.add_flags(made)
    stored_runs.add_thresholds(made)
    stored_runs.add_presets(made)
    made.add_argument(
        "--report-dir",
        type=flags.folder_to_write,
        metavar="DIR",
        help="write report.html, .md and .json, junit.xml and run.json here",
    )
    flags.json_result(made, "the judged probes as JSON on stdout")
    flags.json_file(made)
    flags.talk(made)
    model_flags.old_spelling(made)
    return made


def _package_flags(made: argparse._ArgumentGroup) -> None:
    made.add_argument("--reference", type=Path, metavar="DIR", help="the checkpoint it was made from")
    made.add_argument("--calibration", type=Path, metavar="DIR", help="the calibration whose codes it holds")
    made.add_argument("--backend", choices=tuple(runtime_backends()), help="run it on this backend")
    made.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the reference runs; default cpu")
    made.add_argument("--steps", type=flags.whole_number(1), metavar="N", help="answer tokens per question")
    made.add_argument(
        "--data", type=Path, metavar="DIR",
        help="ask your own pictures and questions: ours, LLaVA's form, or pictures alone (docs/parity_reports.md)",
    )  # fmt: skip
    made.add_argument(
        "--samples", type=flags.whole_number(1), metavar="N", help="own samples to ask, from the first; default 20"
    )
    made.add_argument("--question", metavar="TEXT", help="asked about pictures of --data that come alone")
    made.add_argument("--in-pieces", action="store_true", help="never hold a large one in memory: about a gigabyte in all")
    made.add_argument(
        "--rebuild",
        action="store_true",
        help="hold graphs against those traced anew, a phone's library against one compiled anew",
    )
    made.add_argument(
        "--task", type=flags.whole_number(0), default=0, metavar="N", help="ask a demo about N held-out pictures"
    )
    made.add_argument(
        "--inside", choices=("auto", "always", "never"), default="auto",
        help="errors per block and costs per quantised layer in the report; auto: where it is quick",
    )  # fmt: skip
    made.add_argument("--server", metavar="URL", help="ask the server that runs the package there, as its clients do")
    made.add_argument("--api-key-file", type=Path, metavar="FILE", help="its first line is sent to the server as the key")
    made.add_argument(
        "--sampling", choices=("greedy", "engine", "model"), default="greedy",
        help="judge one more answer to each question, with the sampling that a phone's engine knows, or all of the model's",
    )  # fmt: skip
    flags.trust(made)


def _run(options: argparse.Namespace) -> int:
    refuse_unread(parser(PROG), options)
    if options.matrix:
        return matrix_command.run(options)
    if options.second_opinion:
        return second_opinion.run(options, _table(options))
    if options.mlc_golden is not None:
        return _mlc_golden(options)
    if options.server is not None:
        return _server(options)
    return _golden(options) if options.golden is not None else _package(options)


def _table(options: argparse.Namespace) -> Table | None:
    from parity_tests.judging.own_limits import read_limits

    return None if options.thresholds is None else read_limits(options.thresholds)


def _package(options: argparse.Namespace) -> int:
    from parity_tests.check.own_questions import read_data
    from parity_tests.check.package_check import CheckOptions, check
    from parity_tests.judging.drawn import SamplingMode

    asked = CheckOptions(
        calibration=options.calibration,
        backend=options.backend,
        device=options.device,
        steps=options.steps,
        data=None if options.data is None else read_data(options.data, options.samples, options.question),
        demo_questions=True,
        task_pictures=options.task,
        in_pieces=options.in_pieces,
        rebuild=options.rebuild,
        command=options.typed,
        table=_table(options),
        details=options.report_dir is not None,
        inside={"auto": None, "always": True, "never": False}[options.inside],
        sampling=SamplingMode(options.sampling),
        trust=options.trust,
    )
    result = check(options.package, options.reference, asked)
    return _report(result.judgement, options)


def _server(options: argparse.Namespace) -> int:
    from parity_tests.check.wire import WireOptions, check_server

    if options.package is None:
        raise UsageError("--server without --package", "the package that is served", "add --package DIR")
    keys = flags.keys(options.api_key_file)
    asked = WireOptions(
        key=keys[0] if keys else None,
        calibration=options.calibration,
        steps=options.steps,
        trust=options.trust,
        table=_table(options),
        command=options.typed,
    )
    return _report(check_server(options.server, options.package, options.reference, asked), options)


def _golden(options: argparse.Namespace) -> int:
    from parity_tests.golden.golden import check_golden
    from parity_tests.judging.judge import judge

    if options.target is None or options.precision is None:
        raise UsageError("--golden without --target or --precision", "both", "add e.g. --target cpu --precision fp32")
    table = _table(options)
    run = check_golden(options.golden, options.target, options.precision, options.typed, table)
    return _report(judge(run, table), options)


def _mlc_golden(options: argparse.Namespace) -> int:
    from parity_tests.golden.mlc_golden import check

    results = check(options.mlc_golden)
    width = max((len(result.name) for result in results), default=0)
    failed = [result for result in results if result.status == "fail"]
    verdict = "fail" if failed or not results else "pass"
    lines = [f"{result.name:{width}}  {result.status:5} {result.detail}" for result in results]
    first = failed[0].name if failed else None
    value = {"verdict": verdict, "first_failure": first, "probes": [result.to_json() for result in results]}
    _show("\n".join([*lines, f"verdict: {verdict}"]), value, options)
    return int(ExitCode.OK if verdict == "pass" else ExitCode.PARITY_FAILED)


def _judge(options: argparse.Namespace) -> int:
    from parity_tests.judging.judge import judge
    from parity_tests.judging.results import read

    return _report(judge(read(options.run), _table(options)), options)


def _diff(options: argparse.Namespace) -> int:
    return stored_runs.diff(options, _table(options))


def _show(text: str, value: dict[str, Any], options: argparse.Namespace) -> None:
    """The result on stdout, for people or for programs, and in the file that was asked for."""
    from parity_tests.report import json_report

    if options.json:
        console.out_json(value)
    else:
        console.out(text)
    if options.json_file is not None:
        json_report.write(options.json_file, value)


def _report(judgement: Judgement, options: argparse.Namespace) -> int:
    """Print, write what was asked for, and turn the verdict into an exit code."""
    from parity_tests.judging.judge import Verdict
    from parity_tests.judging.presets import with_preset
    from parity_tests.report import console_report, html_report, json_report, junit_report, markdown_report

    if options.preset is not None:
        judgement = with_preset(judgement, options.preset)
    golden = any(judged.comparison.name == "golden" for judged in judgement.comparisons)
    value = json_report.golden_report(judgement) if golden else json_report.report(judgement)
    text = console_report.console(judgement, None if options.verbose else "golden" if golden else "package")
    _show(text, value, options)
    if options.report_dir is not None:
        json_report.write(options.report_dir / "report.json", value)
        json_report.write_run(options.report_dir / "run.json", judgement)
        markdown_report.write(options.report_dir, judgement)
        html_report.write(options.report_dir, judgement)
        junit_report.write(options.report_dir, judgement)
    if judgement.verdict is Verdict.PASS:
        return int(ExitCode.OK)
    if judgement.verdict is Verdict.NOT_RUN:
        console.say("nothing was compared; see the lines `not run`")
        return int(ExitCode.ENVIRONMENT)
    return int(ExitCode.PARITY_FAILED)


def _gpu_check() -> Command:
    from parity_tests.gpu_cli import COMMAND as gpu_check

    return gpu_check


JUDGE = Command(stored_runs.judge_parser, _judge, level=logging.WARNING)
DIFF = Command(stored_runs.diff_parser, _diff, level=logging.WARNING)

COMMAND = Command(
    parser,
    _run,
    verbs=(
        Verb("judge", "judge a stored run again, with other limits", lambda: JUDGE),
        Verb("diff", "say what got better or worse between two stored runs", lambda: DIFF),
        Verb("gpu-check", "hold engines and ONNX graphs against PyTorch on this machine's GPU", _gpu_check),
    ),
    level=logging.WARNING,
)
