"""The command line: ``python -m calibrate --model ... --method gptq --target android -o scales``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from calibrate.methods import METHODS
from calibrate.request import TUNE_STEPS, CalibrationRequest
from runtime_py.errors import EdgeproofError, ExitCode, UsageError

EXAMPLES = """\
examples:
  python -m calibrate --model minicpm-v --weights demo --method gptq --target android -o scales
  python -m calibrate --model ./checkpoint --method awq --target cpu --block-size 128 --calibration-data ./mine -o scales
  python -m export --model ./checkpoint --target cpu --block-size 128 --codes scales -o out
  python -m calibrate compare --model minicpm-v --target cpu
  python -m calibrate search --model minicpm-v --weights demo --target cpu --budget 1.2 -o choice.json

exit codes: 0 done, 2 usage, 3 unsupported model, 6 interrupted (go on with --resume), 7 environment
"""

COMMANDS = ("compare", "search")


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `UsageError`."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, "flags as listed by --help", f"run `{self.prog} --help`")


def parser() -> argparse.ArgumentParser:
    """The flags of ``python -m calibrate``."""
    made = Parser(
        prog="python -m calibrate",
        description="Choose the integers of int4 layers from samples of what the model will see.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    model_flags(made)
    made.add_argument("--method", default="gptq", metavar="M", help=f"one of {', '.join(METHODS)}; default gptq")
    sample_flags(made)
    made.add_argument(
        "--held-out", type=int, metavar="N",
        help="samples on which the codes must be no worse than rounding; default 64 for small models, 0 for others",
    )  # fmt: skip
    made.add_argument(
        "--tune-scales", type=int, nargs="?", const=TUNE_STEPS, default=0, metavar="STEPS",
        help=f"then tune the decoder's int4 scales end to end; default {TUNE_STEPS} steps (needs the decoder in memory)",
    )  # fmt: skip
    made.add_argument("--choice", type=Path, metavar="FILE", help="bits per layer that calibrate search chose")
    made.add_argument(
        "--parallel", action="store_true", help="all blocks see full-precision inputs (default: quantised ones)"
    )
    made.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the codes")
    made.add_argument("--dry-run", action="store_true", help="print what every layer becomes and stop")
    made.add_argument("--resume", action="store_true", help="go on with a calibration that was cut off")
    made.add_argument("--force", action="store_true", help="replace a calibration of this name")
    talk_flags(made)
    return made


def model_flags(made: argparse.ArgumentParser) -> None:
    """What and what for, as python -m export takes them."""
    made.add_argument("--model", required=True, metavar="MODEL", help="family alias, hub id or checkpoint folder")
    made.add_argument("--weights", metavar="demo|DIR", help="the demo checkpoint, or a folder with the model's weights")
    made.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub")
    made.add_argument("--target", required=True, metavar="TARGET", help="cpu, desktop-gpu, android or ios")
    made.add_argument("--precision", metavar="P", help="as of the export; default: the target's first")
    made.add_argument("--block-size", type=int, metavar="N", help="columns that share an int4 scale (cpu, desktop-gpu)")
    made.add_argument("--vision-precision", metavar="P", help="as of the export (cpu, desktop-gpu)")
    made.add_argument("--embed-precision", metavar="P", help="as of the export (int4, ONNX files)")
    made.add_argument("--head-precision", metavar="P", help="as of the export (int4, ONNX files)")
    made.add_argument("--asymmetric", action="store_true", help="int4 blocks with zero points of their own (ONNX files)")


def sample_flags(made: argparse.ArgumentParser) -> None:
    made.add_argument("--samples", type=int, metavar="N", help="how many; default 128, or all of --calibration-data")
    made.add_argument("--calibration-data", type=Path, metavar="DIR", help="a folder with conversations.jsonl and pictures")
    made.add_argument(
        "--sample-set", metavar="S", help="built-in samples: demo (a demo's own questions, its default) or general"
    )
    made.add_argument("--text-only", action="store_true", help="leave the pictures out, for comparison")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples; default 0")


def talk_flags(made: argparse.ArgumentParser) -> None:
    made.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    made.add_argument("-v", "--verbose", action="count", default=0, help="say more; -vv shows tracebacks")
    made.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code, having printed any error as one message."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbosity = sum(a.count("v") for a in given if a.startswith("-v"))
    try:
        if given and given[0] in COMMANDS:
            return _command(given[0], given[1:])
        return _calibrate(parser().parse_args(given))
    except EdgeproofError as error:
        if verbosity > 1:
            traceback.print_exc()
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("error: stopped\n  expected: to run to the end\n  next: run the same command again with --resume\n")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        return ExitCode.OK


def _command(name: str, arguments: list[str]) -> int:
    import importlib

    run = importlib.import_module(f"calibrate.command.{name}_cli").main
    return int(run(arguments))


def _calibrate(given: argparse.Namespace) -> int:
    from calibrate.run import calibrate, plan

    log_to_stderr(given)
    request = CalibrationRequest(
        model=given.model,
        target=given.target,
        method=given.method,
        output=given.output,
        weights=given.weights,
        revision=given.revision,
        precision=given.precision,
        block_size=given.block_size,
        vision_precision=given.vision_precision,
        embed_precision=given.embed_precision,
        head_precision=given.head_precision,
        asymmetric=given.asymmetric,
        samples=given.samples,
        data=given.calibration_data,
        sample_set=given.sample_set,
        text_only=given.text_only,
        seed=given.seed,
        held_out=given.held_out,
        tune_scales=given.tune_scales,
        sequential=not given.parallel,
        choice=given.choice,
        resume=given.resume,
        force=given.force,
    )
    if given.dry_run:
        out(_plan_text(plan(request), request, given.json))
        return ExitCode.OK
    folder = calibrate(request)
    out(json.dumps(_summary(folder), indent=2) if given.json else str(folder))
    return ExitCode.OK


def _plan_text(planned: Any, request: CalibrationRequest, as_json: bool) -> str:
    """What every layer becomes and why, layers that differ only in their index in one line; then what tuning and the check
    cost.
    """
    from calibrate.evaluation import held_out
    from calibrate.tuning import tuning_memory
    from export.plan.plan import group_layers

    groups = [group for name, found in planned.assignments.items() for group in group_layers(name, found)]
    if as_json:
        return json.dumps([vars(group) for group in groups], indent=2)
    rows = [
        f"{g.backend:8} {g.layers:4} x {g.name:44} {g.rows:6} x {g.columns:<6} {g.form:5} {g.grid:18} {g.reason}"
        for g in groups
    ]
    spec = planned.checkpoint.spec
    for name in planned.wanted:
        if request.tune_scales:
            rows.append(f"{name:8} {tuning_memory.cost(request.tune_scales, spec, planned.assignments[name])}")
        rows.append(f"{name:8} {held_out.cost(request.held_out, spec, planned.blocks(name))}")
    return "\n".join(row.rstrip() for row in rows)


def _summary(folder: Path) -> dict[str, Any]:
    from export.quantisation.stored import read_manifest

    manifest = read_manifest(folder)
    return {
        "folder": str(folder),
        **{key: manifest[key] for key in ("method", "target", "precision", "samples", "backends")},
    }


def log_to_stderr(given: argparse.Namespace) -> None:
    level = logging.ERROR if given.quiet else logging.DEBUG if given.verbose else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("edgeproof").setLevel(level)


def out(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
