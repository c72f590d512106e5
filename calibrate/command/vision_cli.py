"""``edgeproof calibrate vision``: which layers of an int8 tower get a finer form, until the worst token is near enough."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrate.command.cli import add_model
from calibrate.command.search_cli import partial_of, read_partial
from calibrate.request import CalibrationRequest
from export.backends.registry import backend_named
from export.command import model_flags
from export.quantisation.choice import KIND, SCHEMA, widened
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, UsageError

if TYPE_CHECKING:
    import numpy as np

    from calibrate.samples.data import Sample
    from calibrate.vision.search import Inputs, VisionSearch
    from export.backends.base import BuildOptions
    from export.checkpoint.opened import OpenedCheckpoint
    from export.quantisation.spec import Assignment

log = logging.getLogger("edgeproof")

COSINE = 0.999
SAMPLES, DEMO_SAMPLES = 8, 256
"""Pictures that layers are measured on, and as many held-out ones: of any checkpoint, and of a demo with its small tower."""
MOST = 8
"""Built-in samples of which at least one has a picture."""


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Choose which layers of an int8 vision tower get a finer form, by what rounding each one costs.")
    add_model(made)
    made.add_argument(
        "--cosine", type=float, default=COSINE, metavar="C",
        help=f"with full precision, of the worst token of any picture, at least; default {COSINE}",
    )  # fmt: skip
    made.add_argument(
        "--data", "--calibration-data", dest="data", type=Path, metavar="DIR",
        help="your own pictures: any form that calibrate takes; default: a demo's own, else built-in ones",
    )  # fmt: skip
    many = f"default {SAMPLES}, of a demo {DEMO_SAMPLES}"
    made.add_argument("--samples", type=flags.whole_number(1), metavar="N", help=f"pictures to measure on; {many}")
    made.add_argument("--held-out", type=flags.whole_number(1), metavar="N", help="further ones; default as many")
    flags.seed(made, "of the samples")
    made.add_argument("--resume", action="store_true", help="go on with a search that was cut off")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the choice, as JSON")
    flags.json_result(made)
    flags.talk(made)
    made.set_defaults(method="mse-clip")
    return made


def _run(given: argparse.Namespace) -> int:
    from calibrate.search import write_choice
    from calibrate.vision.search import VisionSearch

    if not 0 < given.cosine <= 1:
        raise UsageError(f"--cosine {given.cosine:g}", "a number above 0, 1 at most", "correct the number")
    given.seed = flags.seed_number(given.seed)
    wanted = {"samples": given.samples, "held_out": given.held_out}
    given.samples = given.held_out = None
    request = model_flags.request_of(CalibrationRequest, given)
    checkpoint, name, options, planned = _planned(request)
    assert checkpoint.weights is not None
    samples, held_out, source = _pictures(request, checkpoint, **wanted)
    measured_on = {"source": source, "count": len(samples), "held_out": len(held_out), "seed": given.seed}
    record = {
        "kind": KIND, "schema": SCHEMA, "source": checkpoint.id, "target": request.export().target_record().name,
        "precision": options.precision, "options": dict(options.extra), "measured_on": measured_on,
    }  # fmt: skip
    partial, known = partial_of(given.output), dict[str, float]()
    if partial.exists():
        known = read_partial(partial, record, given.resume)

    def save() -> None:
        write_choice(partial, {"record": record, "sensitivity": known})

    search = VisionSearch(checkpoint.spec, checkpoint.weights, name, planned, samples, held_out, known, save)
    passes = sum(1 + len(forms) for forms in search.forms.values())
    log.info("%s: %d layers, %d passes of %d pictures through the tower, then some of all %d",
             source, len(search.planned), passes, len(samples), len(samples) + len(held_out))  # fmt: skip
    start = search.worst({})
    chosen, reached = ({}, start) if min(start.samples, start.held_out) >= given.cosine else search.until(given.cosine)
    value = {
        **record,
        "goal": {"vision_cosine": given.cosine},
        "backends": {name: dict(sorted(chosen.items()))},
        "bytes": _bytes(name, checkpoint, options, widened(name, planned, chosen)),
        "products": round(search.cost(chosen), 3),
        "scores": {"as planned": asdict(start), "this choice": asdict(reached)},
        "sensitivity": dict(sorted(known.items())),
    }
    write_choice(given.output, value)
    partial.unlink(missing_ok=True)
    if given.json:
        console.out_json(value)
    else:
        console.out("\n".join(_text(value, search, chosen, _bytes(name, checkpoint, options, planned))))
    return ExitCode.OK


def _planned(request: CalibrationRequest) -> tuple[OpenedCheckpoint, str, BuildOptions, Mapping[str, Assignment]]:
    """The checkpoint, the backend that runs its tower, and what the plan makes of every layer.

    Raises:
        UsageError: no layer of the tower rounds its input.
    """
    from export.backends.base import BuildOptions
    from export.checkpoint.opened import open_checkpoint
    from export.plan.plan import picture_rows

    asked = request.export()
    checkpoint, target = open_checkpoint(asked), asked.target_record()
    limits = asked.limits(checkpoint.spec.decoder.max_positions, picture_rows(target, checkpoint.spec))
    options = BuildOptions(target, asked.precision_name(), limits, asked.backend_options())
    backend = backend_named(target.runs.name)
    planned = backend.exporter().assignments(checkpoint.spec, options)
    if not any(assignment.grid in backend.finer for assignment in planned.values()):
        raise UsageError(
            f"no vision layer of --target {target.name} at --precision {options.precision} rounds its input",
            "a tower in int8: --target cpu with --vision-precision int8, its default at int4",
            "name that target, or export as it is: other towers need no choice",
        )
    return checkpoint, backend.name, options, planned


def _pictures(
    request: CalibrationRequest, checkpoint: OpenedCheckpoint, samples: int | None, held_out: int | None
) -> tuple[list[Inputs], list[Inputs], str]:
    """Pictures to measure on and held-out ones, as the tower reads them, and where they are from.

    Raises:
        UsageError: a user's folder has too few.
    """
    from calibrate.evaluation.evaluate import CHECKED, demo_recipe, is_demo
    from calibrate.evaluation.evaluate_samples import BUILT_IN
    from calibrate.samples.data import HELD_OUT_FIRST, built_in, from_folder, held_out_of_folder
    from calibrate.samples.demo_samples import own_samples
    from calibrate.samples.prompts import processor_of
    from export.demo.accuracy import held_out as drawn

    processor, _ = processor_of(checkpoint)

    def read(pictures: Sequence[np.ndarray]) -> list[Inputs]:
        return [piece.vision for picture in pictures for piece in processor.images((picture,))]

    demo = request.data is None and is_demo(checkpoint)
    count = samples or (DEMO_SAMPLES if demo else SAMPLES)
    apart = held_out or count
    if request.data is not None:
        seen = of_samples(from_folder(request.data, count, request.seed, held_out=apart))
        others = of_samples(held_out_of_folder(request.data, count, request.seed, apart))
        if not seen or not others:
            raise UsageError(
                f"{request.data} has {len(seen)} pictures to measure on and {len(others)} to hold out",
                "at least one of each",
                "put more pictures there, or choose smaller --samples",
            )
        return read(seen), read(others), request.data.name
    if demo:
        recipe = demo_recipe(checkpoint)
        seen = of_samples(own_samples(recipe, count, request.seed))
        cases = drawn(apart, recipe.side, CHECKED, digits=recipe.digits)
        others = list({id(case.picture): case.picture for case in cases}.values())
        return read(seen), read(others), "demo pictures"
    log.warning("measuring on drawn pictures, far from what people show a model; bring your own with --data")
    side = checkpoint.spec.image.overview
    first = [
        built_in(MOST * count, request.seed, side=side),
        built_in(MOST * apart, request.seed, side=side, first=HELD_OUT_FIRST),
    ]
    seen, others = (of_samples(made)[:many] for made, many in zip(first, (count, apart), strict=True))
    return read(seen), read(others), BUILT_IN


def of_samples(samples: Iterator[Sample] | Sequence[Sample]) -> list[np.ndarray]:
    """All pictures of some samples."""
    return [picture for sample in samples for picture in sample.pictures]


def _bytes(name: str, checkpoint: OpenedCheckpoint, options: BuildOptions, assignments: Mapping[str, Assignment]) -> int:
    return sum(backend_named(name).exporter().predict(checkpoint.spec, options, assignments).file_bytes.values())


def _text(value: Mapping[str, Any], search: VisionSearch, chosen: Mapping[str, str], before: int) -> Iterator[str]:
    added, cost = value["bytes"] - before, value["products"]
    of = f"{len(chosen)} of {len(search.planned)} vision layers finer"
    yield f"{of}: {added / 1e6:+.3f} MB, products of the tower x {cost:.2f}"
    yield from (f"  {layer}: {form}" for layer, form in value["backends"][next(iter(value["backends"]))].items())
    for title, score in value["scores"].items():
        yield f"{title}: worst token {score['samples']:.5f} on samples, {score['held_out']:.5f} on held-out pictures"


COMMAND = Command(parser, _run)
