"""One comparison as a list of jobs, a method on a grid each, in this process or on the machines of a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from calibrate.blockwise import processor_decides
from calibrate.evaluation.compare_table import Row, row_of
from calibrate.evaluation.comparison import ComparisonRequest, Contestant, GridSetting, OneGrid, evaluation_of, on_grid
from calibrate.methods import method_named
from calibrate.samples.machine import digest, require_same
from calibrate.statistics import passes
from export.cluster.jobs import Job
from export.cluster.results import Form

if TYPE_CHECKING:
    from calibrate.evaluation.score import Evaluation
    from export.checkpoint.opened import OpenedCheckpoint


@dataclass(frozen=True)
class Part:
    """What one job of a comparison measures: a method on a grid, plain rounding on a grid, or no grid at all.

    Attributes:
        request: what all jobs share: without contestants, and with the first grid alone, which the checkpoint is opened by.
        setting: None for full precision and halves.
        contestant: None for plain rounding.
        machine: digest of the texts and photographs that it calibrates on; None where it does not, or
            nothing is kept.
        passes: `calibrate.statistics.passes.products` of the machine that asks; None where samples pass alike on every one,
            or nothing is kept.
    """

    request: ComparisonRequest
    setting: GridSetting | None = None
    contestant: Contestant | None = None
    machine: str | None = None
    passes: str | None = None


def jobs(request: ComparisonRequest, stamped: bool = False) -> list[Job[list[Row]]]:
    """A comparison as jobs in the order of its table: full precision and halves, then grid by grid.

    Args:
        stamped: the jobs say which files they read, as jobs must whose results are kept.

    Raises:
        EdgeproofError: a file cannot be read, where they are stamped.
    """
    checkpoint = _opened(request) if stamped else None
    beside = None if checkpoint is None else _stamps(request, checkpoint)
    shared = replace(request, settings=request.settings[:1], contestants=())
    listed = [Job("compare.full", measure, Part(shared), beside)]
    for setting in request.settings:
        for contestant in (None, *request.contestants):
            name = f"compare.{setting}.{contestant or 'plain'}".replace(":", "-")
            machine, passed = (of(request, contestant, checkpoint) for of in (_machine, _passes))
            listed.append(Job(name, measure, Part(shared, setting, contestant, machine, passed), beside))
    return listed


def measure(part: Part) -> list[Row]:
    """The rows of one job.

    Raises:
        UsageError: a grid that the target does not have, or too little text.
        MachineError: the samples would be others here than on the machine that asks, or pass in other numbers.
    """
    from calibrate.evaluation.score import HalfWeights

    if part.machine is not None:
        require_same(part.machine)
    if part.passes is not None:
        passes.require_same(part.passes)
    bench = _bench(part.request)
    if part.setting is not None:
        return list(OneGrid(part.setting, part.request, bench.checkpoint, bench.evaluation).rows(part.contestant))
    weights, score = bench.evaluation.weights, bench.evaluation.score
    return [Row("", "fp32", "", score(weights), 0.0), Row("", "fp16", "", score(HalfWeights(weights)), 0.0)]


def _to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def _from_json(stored: Sequence[Mapping[str, Any]]) -> list[Row]:
    return [row_of(row) for row in stored]


FORM = Form(_to_json, _from_json, settled=lambda rows: True)
"""Rows as they are kept."""


@dataclass(frozen=True)
class _Bench:
    """What all jobs of a comparison in one process share."""

    checkpoint: OpenedCheckpoint
    evaluation: Evaluation


_last: dict[str, _Bench] = {}


def _bench(request: ComparisonRequest) -> _Bench:
    """Opened and asked in full precision once a process, however many jobs of the comparison it does."""
    from calibrate.evaluation.outliers import with_outliers

    key = repr(request)
    if key not in _last:
        checkpoint = _opened(request)
        if request.outliers:
            checkpoint = with_outliers(checkpoint, request.outliers)
        _last.clear()
        _last[key] = _Bench(checkpoint, evaluation_of(request, checkpoint))
    return _last[key]


def _opened(request: ComparisonRequest) -> OpenedCheckpoint:
    from calibrate.run import plan

    return plan(on_grid(request.base, request.settings[0])).checkpoint


def _machine(request: ComparisonRequest, contestant: Contestant | None, checkpoint: OpenedCheckpoint | None) -> str | None:
    """The part's ``machine``; the checkpoint is there where the jobs are stamped."""
    from calibrate.samples.prompts import looks_at_machine

    if contestant is None or checkpoint is None or not looks_at_machine(contestant.request(request.base), checkpoint):
        return None
    return digest()


def _passes(request: ComparisonRequest, contestant: Contestant | None, checkpoint: OpenedCheckpoint | None) -> str | None:
    """The part's ``passes``; the checkpoint is there where the jobs are stamped."""
    if contestant is None or checkpoint is None:
        return None
    method = method_named(contestant.request(request.base).method)
    return passes.products() if processor_decides(checkpoint.spec, method) else None


def _stamps(request: ComparisonRequest, checkpoint: OpenedCheckpoint) -> dict[str, str]:
    """What shows at once that a file of the checkpoint, a text or a user's sample is another one."""
    from export.package.source_hashes import stamp

    files = dict(checkpoint.files())
    own = request.base.data
    listed = [*request.text, *(() if own is None else sorted(path for path in own.rglob("*") if path.is_file()))]
    return {name: stamp(path) for name, path in [*files.items(), *((str(path), path) for path in listed)]}
