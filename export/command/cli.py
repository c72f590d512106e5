"""The command line of the export. Parsing imports nothing heavy: torch, onnx and tvm come with the work."""

from __future__ import annotations

import argparse
import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from export.command import model_flags
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, Verb
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from export.publish.push import Destination, Pushed
    from export.request import ExportRequest
    from export.verification import Verifier
    from runtime_py.package import Package

log = logging.getLogger("edgeproof")

EXAMPLES = """\
examples:
  {prog} --model minicpm-v --target android
  {prog} --model minicpm-v --weights demo --target android -o out
  {prog} --model ./checkpoint --target cpu --precision int4 -o out
  {prog} --model ./checkpoint --target desktop-gpu --dry-run --device rtx-3060
  {prog} --model ./checkpoint --target cpu -o out --resume
  {prog} --model minicpm-v-2 --target cpu -o out --push you/MiniCPM-V-2-cpu

"""


def command(verifier: Callable[[], Verifier], verbs: tuple[Verb, ...] = ()) -> Command:
    """The command.

    Args:
        verifier: makes what checks a package in the end; called once the flags are understood.
        verbs: words that lead elsewhere instead.
    """
    return Command(parser, lambda options: _run(options, verifier()), verbs=verbs)


def parser(prog: str) -> Parser:
    """The flags."""
    description = "Take a vision-language checkpoint to a package for a phone, GPU or CPU, and prove it."
    made = Parser(prog, description, EXAMPLES.format(prog=prog))
    model_flags.add(made.add_argument_group("what to export"), model_flags.MODEL)
    to = made.add_argument_group("what for")
    model_flags.add(to, (*model_flags.TARGET, *model_flags.LIMITS))
    model_flags.add_backend_options(to)
    model_flags.add(to, (*model_flags.CALIBRATION, *model_flags.CHOICE, *model_flags.DEVICE))
    how = made.add_argument_group("how")
    model_flags.add(how, model_flags.OUTPUT)
    how.add_argument("--dry-run", action="store_true", help="print the plan and stop; config.json is enough")
    model_flags.add(how, (*model_flags.AGAIN, *model_flags.WAIVERS))
    how.add_argument("--push", metavar="USER/NAME", help="then upload the package to the model hub, as `push` does")
    how.add_argument("--private", action="store_true", help="with --push: a repository that nobody else sees")
    flags.json_result(how, "the plan or the result as JSON on stdout")
    flags.talk(how)
    model_flags.old_spelling(made)
    made.remove("--seed", "an export draws nothing at random; a calibration does, and has --seed")
    return made


def _run(options: argparse.Namespace, verifier: Verifier) -> int:
    from export.request import ExportRequest

    request = model_flags.request_of(ExportRequest, options)
    if options.push is not None:
        _check_push(options)
    elif options.private:
        raise UsageError("--private without --push", "--push USER/NAME beside it", "add --push, or leave --private out")
    return _dry_run(request, verifier, options.json) if options.dry_run else _export(request, verifier, options)


def _check_push(options: argparse.Namespace) -> None:
    """Refuse, before an export of hours, a push that would be refused after it."""
    from export.publish.push import check_destination

    if options.skip_verify:
        raise UsageError(
            "--push with --skip-verify: what was not verified is not pushed",
            "an export with its check",
            "leave --skip-verify out, or push the package afterwards with `edgeproof push --force`",
        )
    if not options.dry_run:
        check_destination(_destination(options))


def _destination(options: argparse.Namespace) -> Destination:
    from export.publish.push import Destination

    return Destination(options.push, options.private)


def _dry_run(request: ExportRequest, verifier: Verifier, as_json: bool) -> int:
    from export.pipeline import plan
    from export.plan.report import to_json, to_text

    made = plan(request, verifier)
    if as_json:
        console.out_json(to_json(made))
    else:
        console.out(to_text(made))
    made.refuse_if_it_does_not_fit()
    return ExitCode.OK


def _export(request: ExportRequest, verifier: Verifier, options: argparse.Namespace) -> int:
    from export.command.progress import Progress
    from export.pipeline import export
    from export.plan.report import engine_lines
    from runtime_py.backends.stock_engine import stored_engines
    from runtime_py.package import read

    progress = Progress(quiet=options.quiet)
    folder = export(request, verifier, progress)
    package = read(folder)
    if not options.quiet:
        log.info("\n%s", progress.table())
        for line in engine_lines(stored_engines(package.manifest)):
            log.info("%s", line)
        log.info("check                %s", package.manifest["verification"]["verdict"])
        if request.target_record().server is None:
            log.info("next                 %s", next_command(package))
    pushed = None if options.push is None else _push(folder, options)
    if options.json:
        console.out_json(_result(package) | ({} if pushed is None else {"pushed": pushed.to_json()}))
    else:
        console.out(str(folder) if pushed is None else f"{folder}\n{pushed.url}")
    return ExitCode.OK


def next_command(package: Package) -> str:
    """A command that works on the package: one without a tokenizer cannot chat."""
    folder = shlex.quote(str(package.folder))
    words = any(row["path"] == "tokenizer.json" for row in package.manifest["files"])
    return (
        f"edgeproof chat --package {folder} --image PICTURE --prompt TEXT" if words else f"edgeproof info --package {folder}"
    )


def _push(folder: Path, options: argparse.Namespace) -> Pushed:
    from export.publish.push import push

    return push(folder, _destination(options))


def _result(package: Package) -> dict[str, object]:
    from runtime_py.backends.stock_engine import stored_engines

    written = package.manifest
    return {
        "package": str(package.folder),
        "bytes": sum(file["bytes"] for file in written["files"]),
        "waivers": written["waivers"],
        "verification": written["verification"],
        "stock_engines": [engine.to_json() for engine in stored_engines(written)],
    }
