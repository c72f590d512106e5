"""Every method on every grid, measured on a demo checkpoint's own questions: what is compared, and how one row is made.

A grid's rows are plain rounding's and each method's, on the backend that the target runs by default. A method is calibrated
into a scratch folder and read back from there, as an export reads it.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrate.evaluation.compare_table import GENERAL, PLAIN, TEXT, Row
from calibrate.methods import METHODS, RENAMED, refuse_unknown
from calibrate.request import TUNE_STEPS, CalibrationRequest
from export.quantisation.block_length import AUTO
from runtime_py.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from calibrate.evaluation.score import Evaluation
    from calibrate.run import CalibrationPlan
    from calibrate.samples.data import Sample
    from export.checkpoint.opened import OpenedCheckpoint
    from export.quantisation.codes import CodeSource, WeightProvider

log = logging.getLogger("edgeproof")

MIXED = "mixed"
"""GPTQ after a search for mixed bits."""

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "": {},
    "text": {"text_only": True},
    "general": {"sample_set": "general"},
    "machine": {"sample_set": "machine"},
    "tuned": {"tune_scales": TUNE_STEPS},
}
"""What may follow a method's name, and what it changes of the request."""

TOKENS = 20_000
"""Of held-out text, where text is given."""

SEED = 0
"""Of held-out built-in samples."""

SEARCH_PICTURES = 24
"""Of the search for mixed bits; none of them is asked about in the comparison."""


@dataclass(frozen=True)
class GridSetting:
    """A target and how its int4 layers are stored; written ``cpu``, ``cpu:128`` or ``cpu:32:asymmetric``."""

    target: str
    block_size: int | str | None = None
    asymmetric: bool = False

    @classmethod
    def parse(cls, text: str) -> GridSetting:
        """A setting from its written form.

        Raises:
            UsageError: another form.
        """
        target, block, kind, *more = [*text.split(":"), "", ""]
        if (block and not block.isdigit() and block != AUTO) or kind not in {"", "asymmetric"} or any(more):
            raise UsageError(f"--on {text}", "a target, target:block size or target:block size:asymmetric", "e.g. cpu:32")
        return cls(target, int(block) if block.isdigit() else block or None, kind == "asymmetric")

    def __str__(self) -> str:
        parts = [self.target, "" if self.block_size is None else str(self.block_size), "asymmetric" * self.asymmetric]
        return ":".join(parts).rstrip(":")


DEFAULT_SETTINGS = tuple(GridSetting.parse(text) for text in ("cpu:32", "cpu:128", "desktop-gpu:128", "android"))


@dataclass(frozen=True)
class Contestant:
    """A method and what is different about its calibration, of `VARIANTS`; written ``gptq`` or ``gptq:text``."""

    method: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Contestant:
        """A contestant from its written form.

        Raises:
            UsageError: no such method or variant, or a method that has another name now.
        """
        method, _, variant = text.partition(":")
        if method in RENAMED:
            refuse_unknown(method, "--methods")
        known = [*METHODS, MIXED]
        if method not in known or variant not in VARIANTS:
            expected = f"of {', '.join(known)}, or one:text, one:general, one:machine, one:tuned"
            raise UsageError(f"--methods {text}", expected, did_you_mean(method, known, "correct the name"))
        return cls(method, variant)

    def __str__(self) -> str:
        return f"{self.method}:{self.variant}".rstrip(":")

    def request(self, base: CalibrationRequest) -> CalibrationRequest:
        return replace(base, method="gptq" if self.method == MIXED else self.method, **VARIANTS[self.variant])


@dataclass(frozen=True)
class ComparisonRequest:
    """What is compared.

    Attributes:
        base: the model and the samples; its target, method and output are replaced.
        mixed_share: how many more bytes mixed bits may take, as a share of those of plain rounding.
        pictures: held-out pictures that are asked about.
        held_out: pictures of a check that sends blocks back to rounding, for a further row; 0 for none.
        outliers: how many times larger some channels are made (calibrate.evaluation.outliers); 0 leaves the model as it is.
        text, tokens: files of plain text that no method sees, and how many tokens of them are compared at; without them a
            demo is asked its own held-out questions, any other checkpoint what the held-out built-in samples ask.

    Raises:
        UsageError: on construction, for a size of outliers that changes nothing.
    """

    base: CalibrationRequest
    settings: Sequence[GridSetting]
    contestants: Sequence[Contestant]
    mixed_share: float
    pictures: int
    held_out: int
    outliers: float
    text: Sequence[Path] = ()
    tokens: int = TOKENS

    def __post_init__(self) -> None:
        if self.outliers and self.outliers <= 1:
            expected = "a number above 1, e.g. 16"
            raise UsageError(f"--outliers {self.outliers:g}", expected, "correct the number or leave it out")


def evaluation_of(request: ComparisonRequest, checkpoint: OpenedCheckpoint) -> Evaluation:
    """What the methods are compared on; none of them has seen it."""
    from calibrate.evaluation.evaluate import DemoEvaluation, is_demo
    from calibrate.evaluation.evaluate_samples import on_samples, on_text

    if request.text:
        return on_text(checkpoint, request.text, request.tokens)
    if is_demo(checkpoint):
        return DemoEvaluation(checkpoint, request.pictures)
    return on_samples(checkpoint, _unseen_samples(checkpoint, request.pictures, 1), "built-in samples")


def _unseen_samples(checkpoint: OpenedCheckpoint, count: int, lot: int) -> list[Sample]:
    """Built-in samples that no calibration sees; those of another lot are others."""
    from calibrate.samples.data import HELD_OUT_FIRST, built_in

    return list(built_in(count, SEED, side=checkpoint.spec.image.overview, first=lot * HELD_OUT_FIRST))


def on_grid(base: CalibrationRequest, setting: GridSetting) -> CalibrationRequest:
    return replace(base, target=setting.target, block_size=setting.block_size, asymmetric=setting.asymmetric)


class OneGrid:
    """One setting, on the backend that its target runs by default."""

    def __init__(
        self, setting: GridSetting, request: ComparisonRequest, checkpoint: OpenedCheckpoint, evaluation: Evaluation
    ) -> None:
        from calibrate.run import plan

        asked = on_grid(request.base, setting)
        self.backend = asked.export().target_record().runs.name
        self.base = replace(asked, backend=self.backend)
        self.request, self.checkpoint, self.evaluation = request, checkpoint, evaluation
        self.planned = plan(self.base, checkpoint)
        self.name = f"{setting} ({self.planned.assignments[self.backend][self._wanted[0]].grid})"

    @property
    def _wanted(self) -> Sequence[str]:
        return self.planned.wanted[self.backend]

    def rows(self, contestant: Contestant | None) -> Iterator[Row]:
        """Of one method; None is plain rounding."""
        if contestant is None:
            yield self._plain()
            return
        with tempfile.TemporaryDirectory() as scratch:
            yield from self._rows_of(contestant, Path(scratch))

    def _plain(self) -> Row:
        from export.quantisation.codes import RoundToNearest
        from export.quantisation.grids import GRIDS

        weights = self.evaluation.weights
        plain = RoundToNearest(weights, self.planned.assignments[self.backend], GRIDS)
        score = self.evaluation.score(self._read_back(weights, plain, self.planned))
        return self._sized(Row(self.name, PLAIN, "", score, 0.0, self._bytes(self.planned)), self.planned)

    def _rows_of(self, contestant: Contestant, scratch: Path) -> Iterator[Row]:
        """The method as it is; after that what the check makes of it, where that differs."""
        asked = contestant.request(self.base)
        if contestant.method == MIXED:
            asked = replace(asked, choice=self._choice(scratch / "choice.json"))
        if not self.request.held_out:
            yield self._row(contestant, asked, scratch / "codes")
            return
        checked = self._row(contestant, replace(asked, held_out=self.request.held_out), scratch / "checked")
        if not checked.rounded_blocks:
            yield checked
            return
        yield self._row(contestant, asked, scratch / "codes")
        yield replace(checked, method=f"{contestant.method}, checked")

    def _row(self, contestant: Contestant, asked: CalibrationRequest, folder: Path) -> Row:
        """Calibrate into ``folder``, read the codes back and score them."""
        from calibrate.run import calibrate, plan
        from calibrate.samples.prompts import sample_set_of
        from export.quantisation.stored import StoredCodes

        began, spent = time.perf_counter(), time.process_time()
        asked = replace(asked, output=folder)
        calibrate(asked, self.checkpoint)
        seconds, spent = time.perf_counter() - began, time.process_time() - spent
        planned = plan(asked, self.checkpoint)
        stored = StoredCodes(folder, self.backend, self.evaluation.weights, planned.assignments[self.backend])
        score = self.evaluation.score(self._read_back(stored.weights, stored, planned))
        blocks = tuple(stored.summary().get("held_out", {}).get("rounded_blocks", ()))
        source = sample_set_of(asked, self.checkpoint)
        samples = TEXT if asked.text_only else {"demo": "pictures and text", "general": GENERAL}.get(source, source)
        method = contestant.method + (", scales tuned" if asked.tune_scales else "")
        return self._sized(Row(self.name, method, samples, score, seconds, self._bytes(planned), blocks, spent), planned)

    def _sized(self, row: Row, planned: CalibrationPlan) -> Row:
        """The row with the bits of a weight and the bytes of a package that the planned layers make."""
        from export.backends.registry import backend_named
        from export.plan.widths import whole

        assignments = planned.assignments[self.backend]
        prediction = backend_named(self.backend).exporter().predict(self.checkpoint.spec, planned.options, assignments)
        return replace(row, bits=whole(assignments).bits, size=sum(prediction.file_bytes.values()))

    def _choice(self, path: Path) -> Path:
        """A choice of bits within the share of more bytes, from pictures that the comparison does not ask about."""
        from calibrate.evaluation.evaluate import SEARCHED, DemoEvaluation, is_demo
        from calibrate.evaluation.evaluate_samples import on_samples
        from calibrate.search import Search, write_choice
        from export.backends.registry import backend_named
        from export.quantisation.choice import KIND, SCHEMA
        from export.quantisation.codes import RoundToNearest
        from export.quantisation.grids import GRIDS

        judge: Evaluation
        if is_demo(self.checkpoint):
            judge = DemoEvaluation(self.checkpoint, SEARCH_PICTURES, SEARCHED)
        else:
            samples = _unseen_samples(self.checkpoint, SEARCH_PICTURES, 2)
            judge = on_samples(self.checkpoint, samples, "built-in samples")
        assignments = self.planned.assignments[self.backend]
        codes = RoundToNearest(judge.weights, assignments, GRIDS)
        wider = backend_named(self.backend).wider
        search = Search(judge, judge.weights, codes, assignments, self._wanted, wider, {}, save=lambda: None)
        forms = search.within(int(self.request.mixed_share * self._bytes(self.planned)))
        log.info("%s: %s", self.name, forms)
        write_choice(path, {"kind": KIND, "schema": SCHEMA, "backends": {self.backend: forms}})
        return path

    def _bytes(self, planned: CalibrationPlan) -> int:
        """Stored bytes of the layers that the plan without a choice keeps in four bits."""
        from export.quantisation.block_length import stored_bytes

        return sum(stored_bytes(planned.assignments[self.backend][layer]) for layer in self._wanted)

    def _read_back(self, weights: WeightProvider, codes: CodeSource, planned: CalibrationPlan) -> WeightProvider:
        from export.quantisation.codes import DequantisedWeights
        from export.quantisation.grids import GRIDS

        return DequantisedWeights(weights, codes, planned.assignments[self.backend], GRIDS)
