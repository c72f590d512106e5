"""``python -m calibrate compare``: every method on every grid, on a demo checkpoint, in one table."""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrate.cli import Parser, log_to_stderr, out, sample_flags, talk_flags
from calibrate.methods import METHODS
from calibrate.request import SAMPLES, CalibrationRequest
from runtime_py.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from calibrate.codes import WeightProvider
    from calibrate.evaluate import Evaluation, Score
    from calibrate.run import CalibrationPlan

log = logging.getLogger("edgeproof")

PLAIN = "plain rounding"
SETTINGS = ("cpu:32", "cpu:128", "desktop-gpu:128", "android")


@dataclass(frozen=True)
class Row:
    """One line of the table; ``seconds`` is the calibration's."""

    setting: str
    method: str
    samples: str
    score: Score
    seconds: float


def parser() -> argparse.ArgumentParser:
    made = Parser(prog="python -m calibrate compare", description=__doc__, allow_abbrev=False)
    made.add_argument("--model", required=True, metavar="MODEL", help="family alias with a demo checkpoint")
    made.add_argument("--weights", default="demo", metavar="DIR", help="another checkpoint trained on the demo's task")
    made.add_argument("--on", action="append", metavar="TARGET[:BLOCK[:asymmetric]]", help=f"default: {', '.join(SETTINGS)}")
    made.add_argument("--methods", default=",".join(METHODS), metavar="M,M", help="default: all")
    made.add_argument("--pictures", type=int, default=100, metavar="N", help="held-out pictures; default 100")
    made.add_argument("--text-only-too", action="store_true", help="each method a second time, without the pictures")
    sample_flags(made)
    talk_flags(made)
    return made


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code; the table is Markdown, or JSON with ``--json``."""
    from calibrate.evaluate import Evaluation, HalfWeights
    from calibrate.run import plan

    given = parser().parse_args(arguments)
    log_to_stderr(given)
    requests = [(setting, _request(given, setting)) for setting in given.on or SETTINGS]
    first = plan(requests[0][1]).checkpoint
    evaluation = Evaluation(first, given.pictures)
    rows = [
        Row("", "fp32", "", evaluation.score(evaluation.weights), 0.0),
        Row("", "fp16", "", evaluation.score(HalfWeights(evaluation.weights)), 0.0),
    ]
    for row in rows:
        log.info("%s", table([row]).splitlines()[-1])
    for setting, request in requests:
        for row in _rows(setting, request, given, evaluation):
            log.info("%s", table([row]).splitlines()[-1])
            rows.append(row)
    out(json.dumps([asdict(row) for row in rows], indent=2) if given.json else table(rows))
    return ExitCode.OK


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| grid | method | samples | task | logits cosine | worst | KL (nats) | median KL | same token | s |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        score = row.score
        task = "" if score.accuracy is None else f"{100 * score.accuracy:.1f} %"
        lines.append(
            f"| {row.setting} | {row.method} | {row.samples} | {task} | {score.cosine:.5f} | {score.worst_cosine:.4f} "
            f"| {score.kl:.5f} | {score.median_kl:.1e} | {100 * score.agreement:.2f} % | {row.seconds:.1f} |"
        )
    return "\n".join(lines)


def _request(given: argparse.Namespace, setting: str) -> CalibrationRequest:
    target, block, kind, *more = [*setting.split(":"), "", ""]
    if (block and not block.isdigit()) or kind not in {"", "asymmetric"} or any(more):
        raise UsageError(f"--on {setting}", "a target, target:block size or target:block size:asymmetric", "e.g. cpu:32")
    return CalibrationRequest(
        model=given.model,
        weights=given.weights,
        target=target,
        precision="int4",
        block_size=int(block) if block else None,
        asymmetric=kind == "asymmetric",
        method="rtn",
        output=Path("unused"),
        samples=given.samples or (None if given.calibration_data else SAMPLES),
        data=given.calibration_data,
        text_only=given.text_only,
        seed=given.seed,
    )


def _rows(setting: str, request: CalibrationRequest, given: argparse.Namespace, evaluation: Evaluation) -> Iterator[Row]:
    """Plain rounding, then every method; on the backend that the target runs by default."""
    from calibrate.codes import RoundToNearest
    from calibrate.grids import GRIDS
    from calibrate.run import calibrate, plan
    from export.backends import BACKEND_OF_RUNTIME

    planned = plan(request)
    backend = BACKEND_OF_RUNTIME[request.export().target_record().runtime_backend]
    plain = RoundToNearest(evaluation.weights, planned.assignments[backend], GRIDS)
    grid = planned.assignments[backend][planned.wanted[backend][0]].grid
    name = f"{setting} ({grid})"
    yield Row(name, PLAIN, "", evaluation.score(_dequantised(evaluation.weights, plain, planned, backend)), 0.0)
    for method in given.methods.split(","):
        for text_only in (False, True) if given.text_only_too and method != "hqq" else (given.text_only,):
            with tempfile.TemporaryDirectory() as scratch:
                asked = replace(request, method=method, output=Path(scratch) / "codes", text_only=text_only)
                began = time.perf_counter()
                folder = calibrate(asked)
                seconds = time.perf_counter() - began
                stored = _stored(folder, backend, evaluation.weights, planned)
                score = evaluation.score(_dequantised(stored.weights, stored, planned, backend))
            yield Row(name, method, "text" if text_only else "pictures and text", score, seconds)


def _stored(folder: Path, backend: str, weights: WeightProvider, planned: CalibrationPlan) -> Any:
    from calibrate.stored import StoredCodes

    return StoredCodes(folder, backend, weights, planned.assignments[backend])


def _dequantised(weights: WeightProvider, codes: Any, planned: CalibrationPlan, backend: str) -> WeightProvider:
    from calibrate.codes import DequantisedWeights
    from calibrate.grids import GRIDS

    return DequantisedWeights(weights, codes, planned.assignments[backend], GRIDS)
