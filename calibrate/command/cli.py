"""The command line: ``edgeproof calibrate --model ... --method gptq --target android -o scales``."""

from __future__ import annotations

import argparse
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrate.methods import METHODS
from calibrate.request import TUNE_STEPS
from export.command import model_flags
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, Verb, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

if TYPE_CHECKING:
    from calibrate.request import CalibrationRequest

log = logging.getLogger("edgeproof")

PROG = "python -m calibrate"

EXAMPLES = """\
examples:
  {prog} --model minicpm-v --weights demo --method gptq --target android -o scales
  {prog} --model ./checkpoint --method awq --target cpu --block-size 128 --calibration-data ./mine -o scales
  {prog} search --model minicpm-v --weights demo --target cpu --budget 1.2 -o choice.json
  {prog} compare --model minicpm-v --on cpu:32
  edgeproof export --model ./checkpoint --target cpu --block-size 128 --calibration scales -o out

"""


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m calibrate``: returns the exit code."""
    return execute(COMMAND, PROG, arguments)


def parser(prog: str) -> Parser:
    """The flags."""
    description = "Choose the integers of int4 layers from samples of what the model will see."
    made = Parser(prog, description, EXAMPLES.format(prog=prog))
    add_model(made)
    made.add_argument("--method", default="gptq", metavar="M", help=f"one of {', '.join(METHODS)}; default gptq")
    add_samples(made)
    made.add_argument(
        "--held-out", type=int, metavar="N",
        help="samples on which the codes must be no worse than rounding; default 64 for small models, 0 for others",
    )  # fmt: skip
    made.add_argument(
        "--tune-scales", type=int, nargs="?", const=TUNE_STEPS, default=0, metavar="STEPS",
        help=f"then tune the decoder's int4 scales end to end; default {TUNE_STEPS} steps (needs the decoder in memory)",
    )  # fmt: skip
    made.add_argument("--choice", type=Path, metavar="FILE", help="bits per layer that the verb search or vision chose")
    made.add_argument(
        "--parallel", dest="sequential", action="store_false",
        help="all blocks see full-precision inputs (default: quantised ones)",
    )  # fmt: skip
    made.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the codes")
    made.add_argument("--dry-run", action="store_true", help="print what every layer becomes and stop")
    model_flags.add(made, model_flags.AGAIN)
    flags.json_result(made, "the plan or the result as JSON on stdout")
    flags.talk(made)
    return made


def add_model(made: Parser) -> None:
    """What is calibrated, as the export will take it."""
    model_flags.add(made, (*model_flags.MODEL, *model_flags.TARGET))
    model_flags.add_backend_options(made)


def add_samples(made: Parser) -> None:
    """What the model sees."""
    made.add_argument("--samples", type=int, metavar="N", help="how many; default 128, or all of --calibration-data")
    made.add_argument(
        "--data",
        "--calibration-data",
        dest="data",
        type=Path,
        metavar="DIR",
        help="your own pictures and questions: ours, LLaVA's form, or pictures alone (docs/parity_reports.md)",
    )
    made.add_argument(
        "--sample-set",
        metavar="S",
        help="samples: demo (a demo's own questions, its default), machine (real texts found here), general",
    )
    made.add_argument("--text-only", action="store_true", help="leave the pictures out, for comparison")
    flags.seed(made, "of the samples")


def _run(options: argparse.Namespace) -> int:
    from calibrate.request import CalibrationRequest
    from calibrate.run import calibrate, plan

    options.seed = flags.seed_number(options.seed)
    request = model_flags.request_of(CalibrationRequest, options)
    if options.dry_run:
        _show_plan(plan(request), request, options.json)
        return ExitCode.OK
    folder = calibrate(request)
    if options.json:
        console.out_json(_summary(folder))
    else:
        console.out(str(folder))
    log.info("next: %s", export_command(request))
    return ExitCode.OK


def export_command(request: CalibrationRequest) -> str:
    """The export that a calibration was made for; what it widened, its manifest says."""
    words = model_flags.words_of(request, (*model_flags.MODEL, *model_flags.TARGET))
    return shlex.join(["edgeproof", "export", *words, "--calibration", str(request.output)])


def _show_plan(planned: Any, request: CalibrationRequest, as_json: bool) -> None:
    """What every layer becomes and why, layers that differ only in their index in one line; then what tuning and the check
    cost.
    """
    from calibrate.blockwise import half_passes
    from calibrate.evaluation import held_out
    from calibrate.methods import method_named
    from calibrate.request import SAMPLES
    from calibrate.statistics.forecast import Load, of_machine, told
    from calibrate.tuning import tuning_memory
    from export.plan.plan import group_layers

    groups = [group for name, assignment in planned.assignments.items() for group in group_layers(name, assignment)]
    if as_json:
        console.out_json([vars(group) for group in groups])
        return
    rows = [
        f"{g.backend:8} {g.layers:4} x {g.name:44} {g.rows:6} x {g.columns:<6} {g.storage:5} {g.grid:18} {g.reason}"
        for g in groups
    ]
    spec = planned.checkpoint.spec
    method, load = method_named(request.method), Load.typical(spec, request.samples or SAMPLES, request.text_only)
    for name, wanted in planned.wanted.items():
        expected = of_machine(spec, planned.assignments[name], wanted, load, half_passes(spec, method))
        rows.append(f"{name:8} calibration: {told(expected, load, method.longer)}")
        if request.tune_scales:
            rows.append(f"{name:8} {tuning_memory.cost(request.tune_scales, spec, planned.assignments[name])}")
        rows.append(f"{name:8} {held_out.cost(request.held_out, spec, planned.blocks(name))}")
    rows += [f"note: {note}" for note in planned.notes]
    console.out("\n".join(row.rstrip() for row in rows))


def _summary(folder: Path) -> dict[str, Any]:
    from export.quantisation.stored import read_manifest

    manifest = read_manifest(folder)
    kept = ("method", "target", "precision", "samples", "backends")
    return {"folder": str(folder), **{key: manifest[key] for key in kept}}


def _search() -> Command:
    from calibrate.command.search_cli import COMMAND as search

    return search


def _vision() -> Command:
    from calibrate.command.vision_cli import COMMAND as vision

    return vision


def _compare() -> Command:
    from calibrate.command.compare_cli import COMMAND as compare

    return compare


COMMAND = Command(
    parser,
    _run,
    verbs=(
        Verb("search", "choose which layers get more bits, under a budget or until a gate passes", _search),
        Verb("vision", "choose which layers of an int8 vision tower get a finer form", _vision),
        Verb("compare", "measure every method on every grid, on a demo or on text", _compare),
    ),
)
