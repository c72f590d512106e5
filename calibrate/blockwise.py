"""The visitor that turns each block's moments into codes, one block a file, and keeps the weights as done so far."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from calibrate.methods.base import BlockMethod, LayerProblem, Method, Outcome, measured, solve
from calibrate.methods.chunks import chunk_rows, side_by_side
from calibrate.statistics.block_run import BlockRun
from calibrate.statistics.moments import Moment
from calibrate.statistics.passes import Passes, has_bfloat16, large
from export.quantisation.codes import Codes, DequantisedWeights, RoundToNearest, WeightProvider, joined
from export.quantisation.folds import Fold, decoder_folds
from export.quantisation.grids import GRIDS
from export.quantisation.overlay import OverlaidWeights, Overlay
from export.quantisation.spec import Assignment, Storage
from export.quantisation.stored import read_codes, read_overlay, write_block

if TYPE_CHECKING:
    from torch import Tensor

    from export.package.journal import Journal
    from export.specs import ModelSpec

log = logging.getLogger("edgeproof")

SCALE_ROWS = 1024
"""Rows of a layer that the search for AWQ's factors looks at; evenly spaced where there are more."""


@runtime_checkable
class Scales(Protocol):
    """A method that scales input columns before it rounds (calibrate.methods.awq)."""

    def scale(self, layers: Sequence[LayerProblem], share: int = 1, heads: int = 1) -> Tensor | None: ...


@runtime_checkable
class Prepares(Protocol):
    """A method that derives something of a moment for all rows of a layer, best with all threads."""

    def prepare(self, moment: Moment) -> None: ...


def wanted_layers(assignments: Mapping[str, Assignment]) -> list[str]:
    """The int4 matrices that samples pass through; embeddings are looked up, never multiplied."""
    return [name for name, a in assignments.items() if a.storage is Storage.INT4 and a.grid and a.layer.role != "embedding"]


def half_passes(spec: ModelSpec, method: Method) -> bool:
    """Whether samples pass a model in bfloat16: a large one on a processor that has it. A method for whole blocks computes
    with what a block gives, and has it in float32.
    """
    return processor_decides(spec, method) and has_bfloat16()


def processor_decides(spec: ModelSpec, method: Method) -> bool:
    """Whether `half_passes` is true on processors that have bfloat16, and not on others."""
    return large(spec) and not isinstance(method, BlockMethod)


class BlockwiseCalibration:
    """One backend's calibration.

    Args:
        sequential: see calibrate.request.CalibrationRequest.
        journal: of the folder that files go to.
        backend: folder name and prefix of the journal's steps.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: WeightProvider,
        assignments: Mapping[str, Assignment],
        method: Method,
        sequential: bool,
        journal: Journal,
        backend: str,
    ) -> None:
        self.method, self.sequential, self.journal, self.backend = method, sequential, journal, backend
        self.assignments, self.chosen = assignments, frozenset(wanted_layers(assignments))
        self.state = PartlyQuantised(weights, assignments, self.chosen)
        self.original, self.half = weights, half_passes(spec, method)
        self.folds = dict(decoder_folds(spec)) if isinstance(method, Scales) else {}
        self._report: dict[str, Any] = {}

    @property
    def weights(self) -> WeightProvider:
        """What samples start with."""
        return self.state if self.sequential else self.original

    def wanted(self, layer: str) -> bool:
        return layer in self.chosen

    def visit(self, block: str, moments: Mapping[str, Moment], run: BlockRun | None = None) -> WeightProvider | None:
        """Choose the codes of a block's layers, or take them from an earlier run; see
        calibrate.statistics.stage_stream.Visit.
        """
        if not self.settled(block, list(moments)):
            path, notes = self._paths(block)
            self._calibrate(block, moments, run, path, notes)
            self.journal.finish(self._step(block), [path, notes])
            self._take_up(block, list(moments))
        return self.state if self.sequential else None

    def settled(self, block: str, layers: Sequence[str]) -> bool:
        """Take a block's codes from an earlier run, if one has chosen them."""
        known = self._step(block) in self.journal.steps
        if known:
            self._take_up(block, layers)
        return known

    @property
    def passes(self) -> Passes:
        """What samples may leave out. A method for whole blocks reads what a block gives."""
        return Passes(self.settled, self.sequential and not isinstance(self.method, BlockMethod), self.half)

    def _step(self, block: str) -> str:
        return f"{self.backend} {block}"

    def _paths(self, block: str) -> tuple[Path, Path]:
        path = Path(self.backend) / f"{block}.safetensors"
        return path, path.with_suffix(".json")

    def _take_up(self, block: str, layers: Sequence[str]) -> None:
        path, notes = (self.journal.folder / path for path in self._paths(block))
        self.state.overlay.update(read_overlay(path))
        self.state.files |= dict.fromkeys(layers, path)
        self._report |= json.loads(notes.read_text(encoding="utf-8"))

    def moved(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on with layers in other files, by their rows of the report."""
        self._report |= rows
        self.state.files |= {layer: self.journal.folder / row["file"] for layer, row in rows.items()}

    def report(self) -> dict[str, Any]:
        """Layer name to file, grid, shape and errors, for the manifest."""
        return {name: self._report[name] for name in sorted(self._report)}

    def _calibrate(self, block: str, moments: Mapping[str, Moment], run: BlockRun | None, path: Path, notes: Path) -> None:
        from export.package.journal import write_json

        overlay = Overlay()
        for fold in self.folds.get(block, []):
            self._fold(fold, moments, overlay)
        weights = OverlaidWeights(self.original, overlay)
        layers, rows = {}, {}
        together = self._tuned(moments, run) if run is not None and isinstance(self.method, BlockMethod) else {}
        for name, moment in moments.items():
            grid = GRIDS[self.assignments[name].grid]
            factors = overlay.columns.get(f"{name}.weight")
            outcome = together.get(name)
            if outcome is None:
                outcome = self._solve(name, weights, moment if factors is None else moment.scaled(1 / factors))
            layers[name] = (outcome.codes, grid)
            count, columns = self.original.shape(f"{name}.weight")
            rows[name] = {
                "file": path.as_posix(), "grid": grid.name, "rows": count, "columns": columns, "inputs": moment.count,
                "error": _share(outcome.error, outcome.power), "rounded_error": _share(outcome.rounded_error, outcome.power),
                "rounded_rows": outcome.kept_rows,
            }  # fmt: skip
            log.info(
                "%s %s: output error %.3e, plain rounding %.3e", self.backend, name, rows[name]["error"],
                rows[name]["rounded_error"],
            )  # fmt: skip
        write_block(self.journal.folder / path, layers, overlay)
        write_json(self.journal.folder / notes, rows)

    def _tuned(self, moments: Mapping[str, Moment], run: BlockRun) -> dict[str, Outcome]:
        """All layers of a block together, by a method that can; layers that no sample reached are left to `_solve`."""
        assert isinstance(self.method, BlockMethod)
        problems = {
            name: LayerProblem(
                name, self.original.tensor(f"{name}.weight").float(), GRIDS[self.assignments[name].grid], moment
            )
            for name, moment in moments.items()
            if moment.count
        }
        return {name: measured(problems[name], codes) for name, codes in self.method.tune(problems, run).items()}

    def _fold(self, fold: Fold, moments: Mapping[str, Moment], overlay: Overlay) -> None:
        assert isinstance(self.method, Scales)
        layers = [self._sketch(name, moments[name]) for name in fold.layers if name in moments]
        factors = self.method.scale(layers, fold.share, fold.heads) if layers else None
        if factors is not None:
            overlay.add(fold, factors, self.original)

    def _sketch(self, name: str, moment: Moment) -> LayerProblem:
        """A layer by at most `SCALE_ROWS` of its rows."""
        import torch

        count = self.original.shape(f"{name}.weight")[0]
        if count <= SCALE_ROWS:
            weight = self.original.tensor(f"{name}.weight").float()
        else:
            starts = torch.linspace(0, count - 64, SCALE_ROWS // 64).long().tolist()
            weight = torch.cat([self.original.rows(f"{name}.weight", row, row + 64).float() for row in starts])
        return LayerProblem(name, weight, GRIDS[self.assignments[name].grid], moment)

    def _solve(self, name: str, weights: WeightProvider, moment: Moment) -> Outcome:
        count, columns = weights.shape(f"{name}.weight")
        step = chunk_rows(count, columns)
        if isinstance(self.method, Prepares) and moment.count:
            self.method.prepare(moment)
        grid = GRIDS[self.assignments[name].grid]

        def part(start: int) -> Outcome:
            chunk = weights.rows(f"{name}.weight", start, min(start + step, count)).float()
            return solve(self.method, LayerProblem(name, chunk, grid, moment if moment.count else None))

        parts = side_by_side(part, range(0, count, step))
        return Outcome(
            joined([part.codes for part in parts]),
            sum(part.error for part in parts),
            sum(part.rounded_error for part in parts),
            sum(part.power for part in parts),
            sum(part.kept_rows for part in parts),
        )


class CodesSoFar:
    """A CodeSource: files of the layers done so far, and rounding for others.

    Args:
        files: of the layers that are done.
    """

    def __init__(self, rounding: RoundToNearest, files: Mapping[str, Path]) -> None:
        self._rounding, self._files = rounding, files

    def rows(self, layer: str, start: int, stop: int) -> Codes:
        assignment = self._rounding.assignments[layer]
        name = assignment.shares or layer
        if name in self._files:
            return read_codes(self._files[name], name, GRIDS[assignment.grid], start, stop)
        return self._rounding.rows(layer, start, stop)


class PartlyQuantised(DequantisedWeights):
    """A WeightProvider in which the blocks done so far are as their codes say, and the rest is as it was.

    Layers that are quantised without calibration (8-bit vision layers, embeddings) come rounded from the start.
    """

    def __init__(self, weights: WeightProvider, assignments: Mapping[str, Assignment], chosen: frozenset[str]) -> None:
        self.overlay = Overlay()
        self.chosen = chosen
        self.files: dict[str, Path] = {}
        overlaid = OverlaidWeights(weights, self.overlay)
        super().__init__(overlaid, CodesSoFar(RoundToNearest(overlaid, assignments, GRIDS), self.files), assignments, GRIDS)

    def rows(self, target: str, start: int, stop: int | None) -> Tensor:
        layer = target.removesuffix(".weight")
        if layer in self.chosen and layer not in self.files:
            return self.weights.rows(target, start, stop)
        return super().rows(target, start, stop)


def _share(error: float, power: float) -> float:
    """Output error over output power; 0 where there was no output."""
    return error / power if power > 0 else 0.0
