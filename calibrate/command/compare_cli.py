"""``python -m calibrate compare``: every method on every grid, on a demo checkpoint, in one table."""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrate.command.cli import Parser, log_to_stderr, out, sample_flags, talk_flags
from calibrate.evaluation.compare_table import GENERAL, PLAIN, TEXT, Row, as_json, long_table, wide_table
from calibrate.methods import METHODS
from calibrate.request import SAMPLES, TUNE_STEPS, CalibrationRequest
from runtime_py.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from calibrate.evaluation.score import Evaluation
    from calibrate.run import CalibrationPlan
    from export.checkpoint.opened import OpenedCheckpoint
    from export.quantisation.codes import WeightProvider

log = logging.getLogger("edgeproof")

MIXED = "mixed"
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "text": {"text_only": True},
    "general": {"sample_set": "general"},
    "tuned": {"tune_scales": TUNE_STEPS},
}
"""What follows a method's name, and what it changes of the request."""

SETTINGS = ("cpu:32", "cpu:128", "desktop-gpu:128", "android")
PICTURES = 24
"""Of the search for mixed bits."""


def parser() -> argparse.ArgumentParser:
    made = Parser(prog="python -m calibrate compare", description=__doc__, allow_abbrev=False)
    made.add_argument("--model", required=True, metavar="MODEL", help="family alias with a demo checkpoint")
    made.add_argument("--weights", default="demo", metavar="DIR", help="another checkpoint trained on the demo's task")
    made.add_argument("--on", action="append", metavar="TARGET[:BLOCK[:asymmetric]]", help=f"default: {', '.join(SETTINGS)}")
    made.add_argument(
        "--methods", default=",".join([*METHODS, MIXED]), metavar="M,M",
        help="default: all, and gptq after a search for mixed bits; method:text leaves the pictures out, "
        "method:general takes the general samples, method:tuned tunes its scales in the end",
    )  # fmt: skip
    made.add_argument(
        "--mixed", type=float, default=20.0, metavar="P", help="percent of bytes that mixed may add; default 20"
    )
    made.add_argument("--pictures", type=int, default=100, metavar="N", help="held-out pictures; default 100")
    made.add_argument(
        "--held-out", type=int, default=0, metavar="N",
        help="a further row where the check on N other pictures sends blocks back to rounding; default 0, no check",
    )  # fmt: skip
    made.add_argument(
        "--outliers", type=float, default=0.0, metavar="SIZE",
        help="give the demo outlier channels SIZE times larger, which changes nothing in full precision; default none",
    )  # fmt: skip
    made.add_argument("--wide", action="store_true", help="one line a method, one column a grid")
    sample_flags(made)
    talk_flags(made)
    return made


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code; the table is Markdown, or JSON with ``--json``."""
    from calibrate.evaluation.evaluate import DemoEvaluation
    from calibrate.evaluation.outliers import with_outliers
    from calibrate.evaluation.score import HalfWeights
    from calibrate.run import plan

    given = parser().parse_args(arguments)
    log_to_stderr(given)
    methods = _methods(given)
    if given.outliers and given.outliers <= 1:
        raise UsageError(f"--outliers {given.outliers:g}", "a number above 1, e.g. 16", "correct the number or leave it out")
    requests = [(setting, _request(given, setting)) for setting in given.on or SETTINGS]
    checkpoint = plan(requests[0][1]).checkpoint
    if given.outliers:
        checkpoint = with_outliers(checkpoint, given.outliers)
    evaluation = DemoEvaluation(checkpoint, given.pictures)
    rows = [
        Row("", "fp32", "", evaluation.score(evaluation.weights), 0.0),
        Row("", "fp16", "", evaluation.score(HalfWeights(evaluation.weights)), 0.0),
    ]
    for row in rows:
        log.info("%s", long_table([row]).splitlines()[-1])
    for setting, request in requests:
        cells = _Setting(setting, request, checkpoint, evaluation, given.mixed / 100, given.held_out)
        for row in cells.rows(methods):
            log.info("%s", long_table([row]).splitlines()[-1])
            rows.append(row)
    if given.json:
        out(json.dumps(as_json(given.model, given.pictures, rows, given.outliers), indent=2))
    else:
        out(wide_table(rows) if given.wide else long_table(rows))
    return ExitCode.OK


def _methods(given: argparse.Namespace) -> list[tuple[str, str]]:
    """Method names, and what is different about each, of `VARIANTS`."""
    found = []
    for asked in given.methods.split(","):
        name, _, kind = asked.partition(":")
        if name not in {*METHODS, MIXED} or kind not in VARIANTS:
            known = ", ".join([*METHODS, MIXED])
            raise UsageError(f"--methods {asked}", f"of {known}, or one:text, one:general, one:tuned", "correct the name")
        found.append((name, kind))
    return found


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
        sample_set=given.sample_set,
        text_only=given.text_only,
        seed=given.seed,
        held_out=0,
    )


@dataclass
class _Setting:
    """One grid: plain rounding, then every method, on the backend that the target runs by default."""

    setting: str
    request: CalibrationRequest
    checkpoint: OpenedCheckpoint
    evaluation: Evaluation
    mixed_share: float
    held_out: int

    def rows(self, methods: Sequence[tuple[str, str]]) -> Iterator[Row]:
        from calibrate.run import plan
        from export.quantisation.codes import RoundToNearest
        from export.quantisation.grids import GRIDS

        self.backend = self.request.export().target_record().runs.name
        self.request = replace(self.request, backend=self.backend)
        planned = plan(self.request, self.checkpoint)
        assignments = planned.assignments[self.backend]
        self.wanted = planned.wanted[self.backend]
        self.name = f"{self.setting} ({assignments[self.wanted[0]].grid})"
        plain = RoundToNearest(self.evaluation.weights, assignments, GRIDS)
        score = self.evaluation.score(_dequantised(self.evaluation.weights, plain, planned, self.backend))
        yield Row(self.name, PLAIN, "", score, 0.0, self._bytes(planned))
        for method, kind in methods:
            yield from self._method(method, kind, planned)

    def _method(self, method: str, kind: str, planned: CalibrationPlan) -> Iterator[Row]:
        """The method as it is; after that what the check makes of it, where that differs."""
        with tempfile.TemporaryDirectory() as scratch:
            asked = replace(self.request, method="gptq" if method == MIXED else method, **VARIANTS[kind])
            if method == MIXED:
                asked = replace(asked, choice=self._choice(planned, Path(scratch)))
            if not self.held_out:
                yield self._row(method, asked, Path(scratch) / "codes")
                return
            checked = self._row(method, replace(asked, held_out=self.held_out), Path(scratch) / "checked")
            if checked.rounded_blocks:
                yield self._row(method, asked, Path(scratch) / "codes")
                yield replace(checked, method=f"{method}, checked")
            else:
                yield checked

    def _row(self, method: str, asked: CalibrationRequest, folder: Path) -> Row:
        from calibrate.run import calibrate, plan
        from export.quantisation.stored import StoredCodes

        began = time.perf_counter()
        asked = replace(asked, output=folder)
        calibrate(asked, self.checkpoint)
        seconds = time.perf_counter() - began
        planned = plan(asked, self.checkpoint)
        stored = StoredCodes(folder, self.backend, self.evaluation.weights, planned.assignments[self.backend])
        score = self.evaluation.score(_dequantised(stored.weights, stored, planned, self.backend))
        blocks = tuple(stored.summary().get("held_out", {}).get("rounded_blocks", ()))
        samples = TEXT if asked.text_only else GENERAL if asked.sample_set == "general" else "pictures and text"
        method += ", scales tuned" if asked.tune_scales else ""
        return Row(self.name, method, samples, score, seconds, self._bytes(planned), blocks)

    def _choice(self, planned: CalibrationPlan, scratch: Path) -> Path:
        """A choice of bits within `mixed_share` more bytes, from pictures that the table does not ask about."""
        from calibrate.evaluation.evaluate import SEARCHED, DemoEvaluation
        from calibrate.search import Search, write_choice
        from export.backends.registry import backend_named
        from export.quantisation.choice import KIND, SCHEMA
        from export.quantisation.codes import RoundToNearest
        from export.quantisation.grids import GRIDS

        judge = DemoEvaluation(planned.checkpoint, PICTURES, SEARCHED)
        assignments = planned.assignments[self.backend]
        codes = RoundToNearest(judge.weights, assignments, GRIDS)
        wider = backend_named(self.backend).wider
        search = Search(judge, judge.weights, codes, assignments, self.wanted, wider, {}, save=lambda: None)
        forms = search.within(int(self.mixed_share * self._bytes(planned)))
        log.info("%s: %s", self.name, forms)
        path = scratch / "choice.json"
        write_choice(path, {"kind": KIND, "schema": SCHEMA, "backends": {self.backend: forms}})
        return path

    def _bytes(self, planned: CalibrationPlan) -> int:
        from calibrate.search import stored_bytes

        return sum(stored_bytes(planned.assignments[self.backend][layer]) for layer in self.wanted)


def _dequantised(weights: WeightProvider, codes: Any, planned: CalibrationPlan, backend: str) -> WeightProvider:
    from export.quantisation.codes import DequantisedWeights
    from export.quantisation.grids import GRIDS

    return DequantisedWeights(weights, codes, planned.assignments[backend], GRIDS)
