"""The command line of the export, and the console command ``edgeproof`` that leads to every verb.

Parsing imports nothing heavy: torch, onnx and tvm come with the work.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from runtime_py.errors import EdgeproofError, ExitCode, InterruptedExportError, UsageError

if TYPE_CHECKING:
    from export.request import ExportRequest
    from export.verification import Verifier

VERBS = {
    "export": ("export", "export a checkpoint to a package"),
    "calibrate": ("calibrate", "choose int4 codes from sample data"),
    "targets": ("targets", "list targets and devices"),
    "chat": ("runtime_py", "ask a package about a picture"),
    "info": ("runtime_py", "say what a package holds"),
    "verify": ("runtime_py", "compare a package's files with its manifest and run its self-test"),
    "bench": ("runtime_py", "measure tokens per second, first-token time and memory of a package"),
    "parity": ("parity_tests", "compare a package with its reference"),
}
"""Verb to the package whose ``python -m`` it is, and its one-line help."""

RUNTIME = "runtime_py"
"""The package whose ``python -m`` has verbs of its own."""

log = logging.getLogger("edgeproof")

EXAMPLES = """\
examples:
  python -m export --model minicpm-v --target android
  python -m export --model minicpm-v --weights demo --target android -o out
  python -m export --model ./checkpoint --target cpu --precision int4 -o out
  python -m export --model ./checkpoint --target desktop-gpu --dry-run --device rtx-3060
  python -m export --model ./checkpoint --target cpu -o out --resume

exit codes: 0 whole and within tolerance, 2 usage, 3 unsupported model, 4 does not fit,
5 parity failed, 6 interrupted (go on with --resume), 7 environment
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `UsageError`."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, "flags as listed by --help", f"run `{self.prog} --help`")


def parser() -> argparse.ArgumentParser:
    """The flags of ``python -m export``."""
    made = Parser(
        prog="python -m export",
        description="Take a vision-language checkpoint to a package for a phone, GPU or CPU, and prove it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = made.add_argument_group("what to export")
    what.add_argument("--model", required=True, metavar="MODEL", help="family alias, hub id or checkpoint folder")
    what.add_argument("--weights", metavar="demo|DIR", help="the demo checkpoint, or a folder with the model's weights")
    what.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub")
    to = made.add_argument_group("what for")
    to.add_argument("--target", required=True, metavar="TARGET", help="cpu, desktop-gpu, android, ios (python -m targets)")
    to.add_argument("--precision", metavar="P", help="int4, fp16, fp32 or a name of the target; default: the target's first")
    to.add_argument("--context", type=int, metavar="N", help="positions in the cache, prompt and answer together")
    to.add_argument("--prefill-chunk", type=int, metavar="N", help="tokens fed to the decoder in one call at most")
    to.add_argument("--vision-precision", metavar="P", help="int8, fp16 or fp32 for the vision encoder (cpu, desktop-gpu)")
    to.add_argument("--block-size", type=int, metavar="N", help="columns that share an int4 scale (cpu, desktop-gpu)")
    to.add_argument("--asymmetric", action="store_true", help="int4 blocks with zero points of their own (cpu, desktop-gpu)")
    to.add_argument("--embed-precision", metavar="P", help="int8, int4, fp16 or fp32 for the embedding (int4, ONNX files)")
    to.add_argument("--head-precision", metavar="P", help="int4, int8 or fp16 for the language head (int4, ONNX files)")
    to.add_argument("--codes", type=Path, metavar="DIR", help="int4 codes that python -m calibrate chose")
    to.add_argument("--device", metavar="NAME", help="refuse what does not fit this device (python -m targets)")
    to.add_argument("--seed", type=int, default=0, metavar="N", help="for anything drawn at random; default 0")
    how = made.add_argument_group("how")
    how.add_argument("-o", "--output", type=Path, metavar="DIR", help="package folder; default <model>-<target>-<precision>")
    how.add_argument("--dry-run", action="store_true", help="print the plan and stop; config.json is enough")
    how.add_argument("--resume", action="store_true", help="go on with an export that was cut off")
    how.add_argument("--force", action="store_true", help="replace a package or an unfinished export of this name")
    how.add_argument("--skip-verify", action="store_true", help="leave the check at the end out; recorded as a waiver")
    how.add_argument("--without-tokenizer", action="store_true", help="accept a checkpoint without one; a waiver")
    how.add_argument("--json", action="store_true", help="the plan or the result as JSON on stdout")
    how.add_argument("-v", "--verbose", action="count", default=0, help="say more; -vv shows tracebacks")
    how.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    return made


def main(arguments: Sequence[str] | None, verifier: Callable[[], Verifier]) -> int:
    """``python -m export``: returns the exit code, having printed any error as one message.

    Args:
        verifier: makes what checks the package at the end; called when work starts.
    """
    given = kebab(sys.argv[1:] if arguments is None else list(arguments))
    verbosity = sum(a.count("v") for a in given if a.startswith("-v")) + 2 * given.count("--verbose")
    try:
        return _run(parser().parse_args(given), verifier)
    except EdgeproofError as error:
        return _complain(error, verbosity)
    except KeyboardInterrupt:
        stopped = InterruptedExportError(
            "stopped before any work", "the export to run to its end", "run the same command again"
        )
        return _complain(stopped, verbosity)
    except BrokenPipeError:
        return ExitCode.OK
    except Exception as error:
        if verbosity > 1:
            traceback.print_exc()
        _say(f"error: internal error, {type(error).__name__}: {error}")
        _say("  expected: no error here\n  next: run again with -vv and report what it prints")
        return ExitCode.INTERNAL


def kebab(arguments: list[str]) -> list[str]:
    """Flags in kebab-case; ``--prefill_chunk`` is taken for ``--prefill-chunk``."""
    found = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        found.append((flag.replace("_", "-") + equals + value) if flag.startswith("--") else argument)
    return found


def _run(given: argparse.Namespace, verifier: Callable[[], Verifier]) -> int:
    from export.request import ExportRequest

    _log_to_stderr(given)
    request = ExportRequest(
        model=given.model,
        target=given.target,
        weights=given.weights,
        precision=given.precision,
        output=given.output,
        context=given.context,
        prefill_chunk=given.prefill_chunk,
        device=given.device,
        vision_precision=given.vision_precision,
        block_size=given.block_size,
        embed_precision=given.embed_precision,
        head_precision=given.head_precision,
        asymmetric=given.asymmetric,
        revision=given.revision,
        codes=given.codes,
        seed=given.seed,
        resume=given.resume,
        force=given.force,
        skip_verify=given.skip_verify,
        without_tokenizer=given.without_tokenizer,
    )
    return _dry_run(request, verifier(), given.json) if given.dry_run else _export(request, verifier(), given)


def _dry_run(request: ExportRequest, verifier: Verifier, as_json: bool) -> int:
    from export.pipeline import plan
    from export.plan.report import to_json, to_text

    made = plan(request, verifier)
    _out(json.dumps(to_json(made), ensure_ascii=False, indent=2) if as_json else to_text(made))
    made.refuse_if_it_does_not_fit()
    return ExitCode.OK


def _export(request: ExportRequest, verifier: Verifier, given: argparse.Namespace) -> int:
    from export.command.progress import Progress
    from export.pipeline import export

    signal.signal(signal.SIGTERM, _stop)
    progress = Progress(quiet=given.quiet)
    folder = export(request, verifier, progress)
    if not given.quiet:
        log.info("\n%s", progress.table())
    _out(json.dumps(_result(folder), ensure_ascii=False, indent=2) if given.json else str(folder))
    return ExitCode.OK


def _result(folder: Path) -> dict[str, object]:
    written = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return {
        "package": str(folder),
        "bytes": sum(file["bytes"] for file in written["files"]),
        "waivers": written["waivers"],
        "verification": written["verification"],
    }


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _log_to_stderr(given: argparse.Namespace) -> None:
    level = logging.ERROR if given.quiet else logging.DEBUG if given.verbose else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(level)


def _complain(error: EdgeproofError, verbosity: int) -> int:
    if verbosity > 1:
        traceback.print_exc()
    _say(f"error: {error}")
    return error.exit_code


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _out(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def edgeproof() -> NoReturn:
    """The console command: ``edgeproof VERB ...`` is ``python -m PACKAGE ...``."""
    verb, rest = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if verb in ("-h", "--help", "help"):
        _out("usage: edgeproof VERB [flags]\n\n" + "\n".join(f"  {name:<10} {text}" for name, (_, text) in VERBS.items()))
        sys.exit(ExitCode.OK)
    package = VERBS.get(verb, ("", ""))[0]
    if not package or importlib.util.find_spec(f"{package}.__main__") is None:
        error = UsageError(
            f"edgeproof {verb}: there is no such verb", "one of " + ", ".join(VERBS), "run `edgeproof --help`"
        )
        sys.exit(_complain(error, 0))
    sys.argv = [f"edgeproof {verb}", *([verb] if package == RUNTIME else []), *rest]
    runpy.run_module(package, run_name="__main__")
    sys.exit(ExitCode.OK)
