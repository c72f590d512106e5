"""``edgeproof calibrate search``: which layers get 8 or 16 bits, under a budget or until a gate passes."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrate.command.cli import add_model
from calibrate.request import CalibrationRequest
from export.backends.registry import backend_named
from export.command import model_flags
from export.quantisation.choice import KIND, SCHEMA, widened
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from calibrate.evaluation.score import Evaluation
    from calibrate.run import CalibrationPlan
    from calibrate.search import Search
    from export.checkpoint.opened import OpenedCheckpoint

log = logging.getLogger("edgeproof")

SAMPLES = 48
"""Built-in samples that a checkpoint without the demo's task is measured on."""


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Choose which int4 layers get 8 or 16 bits, under a budget or until a gate passes.")
    add_model(made)
    goal = made.add_mutually_exclusive_group(required=True)
    goal.add_argument("--budget", type=float, metavar="MB", help="size of the package's weights at most, in 10^6 bytes")
    goal.add_argument(
        "--gate", metavar="G", help="e.g. cosine=0.995,task=1pt (points lost against full precision) or kl=0.01"
    )
    model_flags.add(made, model_flags.CALIBRATION)
    made.add_argument("--pictures", type=int, default=60, metavar="N", help="of a demo's questions; default 60")
    made.add_argument(
        "--data", "--calibration-data", dest="data", type=Path, metavar="DIR",
        help="measure on your own samples; default: a demo's questions",
    )  # fmt: skip
    made.add_argument("--samples", type=int, metavar="N", help=f"of other checkpoints; default {SAMPLES}, or all of yours")
    flags.seed(made, "of the samples")
    made.add_argument("--resume", action="store_true", help="go on with a search that was cut off")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the choice, as JSON")
    flags.json_result(made)
    flags.talk(made)
    model_flags.old_spelling(made)
    made.set_defaults(method="mse-clip")
    return made


def _run(given: argparse.Namespace) -> int:
    from calibrate.run import plan
    from calibrate.search import Gate, write_choice

    given.seed = flags.seed_number(given.seed)
    gate = None if given.gate is None else Gate.parse(given.gate)
    request = model_flags.request_of(CalibrationRequest, given)
    planned = plan(request)
    backend = backend_named(request.export().target_record().runs.name)
    name = backend.name
    evaluation = evaluation_of(request, planned.checkpoint, given.pictures)
    if gate is not None:
        gate.check(evaluation)
    log.info(
        "%s, %d: about %d passes through the whole model", evaluation.source, evaluation.count,
        len(backend.wider) * len(planned.wanted[name]) + 3,
    )  # fmt: skip
    search, record = _prepared(given, planned, name, evaluation, request.options)
    full = evaluation.score(evaluation.weights)
    if gate is None:
        room = room_above(given.budget, planned, name)
        chosen = search.within(room)
        score = search.score(chosen)
    else:
        chosen, score = search.until(gate, full)
    start = search.score({})
    storages = widened(name, planned.assignments[name], chosen)
    size = sum(backend.exporter().predict(planned.checkpoint.spec, planned.options, storages).file_bytes.values())
    value = {
        **record,
        "goal": {"budget": given.budget} if gate is None else asdict(gate),
        "backends": {name: dict(sorted(chosen.items()))},
        "bytes": size,
        "scores": {"full precision": full.figures(), "all int4": start.figures(), "this choice": score.figures()},
        "sensitivity": dict(sorted(search.known.items())),
    }
    write_choice(given.output, value)
    partial_of(given.output).unlink(missing_ok=True)
    if given.json:
        console.out_json(value)
    else:
        console.out(_text(value, name, len(planned.wanted[name])))
    return ExitCode.OK


def _prepared(
    given: argparse.Namespace,
    planned: CalibrationPlan,
    name: str,
    evaluation: Evaluation,
    options: Mapping[str, object],
) -> tuple[Search, dict[str, Any]]:
    """The search, with what an earlier run measured, and what identifies it."""
    from calibrate.search import Search, write_choice
    from export.quantisation.codes import CodeSource, RoundToNearest, WeightProvider
    from export.quantisation.grids import GRIDS
    from export.quantisation.stored import StoredCodes

    weights: WeightProvider = evaluation.weights
    codes: CodeSource = RoundToNearest(weights, planned.assignments[name], GRIDS)
    record: dict[str, Any] = {
        "kind": KIND, "schema": SCHEMA, "source": planned.checkpoint.id, "target": given.target,
        "precision": given.precision, "block_size": given.block_size, "asymmetric": given.asymmetric,
        "embed_precision": given.embed_precision, "head_precision": given.head_precision,
        "measured_on": {"source": evaluation.source, "count": evaluation.count, "seed": given.seed}, "codes": None,
    }  # fmt: skip
    if options:
        record["options"] = dict(options)
    if given.calibration is not None:
        stored = StoredCodes(given.calibration, name, weights, planned.assignments[name])
        weights, codes = stored.weights, stored
        record["codes"] = stored.summary()
    known: dict[str, float] = {}
    partial = partial_of(given.output)
    if partial.exists():
        known = read_partial(partial, record, given.resume)

    def save() -> None:
        write_choice(partial, {"record": record, "sensitivity": known})

    layers, wider = planned.wanted[name], backend_named(name).wider
    return Search(evaluation, weights, codes, planned.assignments[name], layers, wider, known, save), record


def read_partial(path: Path, record: Mapping[str, Any], resume: bool) -> dict[str, float]:
    """The sensitivities that a search measured which was cut off.

    Raises:
        UsageError: going on was not asked for, the file is another search's, or cannot be read.
    """
    try:
        partial = json.loads(path.read_text(encoding="utf-8"))
        begun, known = dict(partial["record"]), {name: float(cost) for name, cost in partial["sensitivity"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "what a search wrote that was cut off", "remove it") from error
    if not resume:
        raise UsageError(f"{path} is there from a search that did not finish", "no such file", "add --resume, or remove it")
    if begun != json.loads(json.dumps(record)):
        raise UsageError(f"{path} was begun by another search", "the same flags", "remove it, or give those flags")
    return known


def room_above(megabytes: float, planned: CalibrationPlan, name: str) -> int:
    """Bytes that the budget leaves above the package with every layer in four bits."""
    exporter = backend_named(name).exporter()
    prediction = exporter.predict(planned.checkpoint.spec, planned.options, planned.assignments[name])
    least = sum(prediction.file_bytes.values())
    room = int(megabytes * 1e6) - least
    if room < 0:
        raise UsageError(
            f"--budget {megabytes:g} MB",
            f"at least {ceil(least / 1e3) / 1e3:.3f} MB, the package with all int4 layers in four bits",
            "raise the budget, or use a larger --block-size",
        )
    return room


def evaluation_of(request: CalibrationRequest, checkpoint: OpenedCheckpoint, pictures: int) -> Evaluation:
    """What sensitivities are measured on: the user's samples, else a demo's own questions, else built-in samples."""
    from calibrate.evaluation.evaluate import SEARCHED, DemoEvaluation, is_demo
    from calibrate.evaluation.evaluate_samples import BUILT_IN, on_samples
    from calibrate.samples.data import built_in, from_folder

    if request.data is not None:
        return on_samples(checkpoint, from_folder(request.data, request.samples, request.seed), request.data.name)
    if is_demo(checkpoint):
        return DemoEvaluation(checkpoint, pictures, SEARCHED)
    side = checkpoint.spec.image.overview
    return on_samples(checkpoint, list(built_in(request.samples or SAMPLES, request.seed, side=side)), BUILT_IN)


def partial_of(output: Path) -> Path:
    """Where a search writes what it measures."""
    return output.with_name(output.name + ".partial")


def _text(value: Mapping[str, Any], name: str, count: int) -> str:
    chosen = value["backends"][name]
    lines = [f"{len(chosen)} of {count} int4 layers widened, {value['bytes'] / 1e6:.3f} MB of weights"]
    lines += [f"  {layer}: {storage}" for layer, storage in chosen.items()]
    for title, score in value["scores"].items():
        accuracy = "" if score["accuracy"] is None else f"task {100 * score['accuracy']:.1f} %, "
        lines.append(f"{title}: {accuracy}cosine {score['cosine']:.5f}, KL {score['kl']:.5f}")
    return "\n".join(lines)


COMMAND = Command(parser, _run)
