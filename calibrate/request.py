"""What the user asked of a calibration: one frozen record that checks itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from calibrate.methods import refuse_unknown
from export.request import ExportRequest
from runtime_py.errors import UsageError

SAMPLES = 128

SAMPLE_SETS = ("demo", "general", "machine")
"""Samples that nobody has to bring: a demo's own questions (calibrate.samples.demo_samples), the general set of drawn
pictures (calibrate.samples.data), and real texts and photographs of this machine (calibrate.samples.machine)."""

TUNE_STEPS = 100
"""Steps of scale tuning where it is asked for without a number."""

HELD_OUT = 64
"""Pictures or samples of the check that ends a calibration."""


@dataclass(frozen=True)
class CalibrationRequest:
    """One calibration, as asked.

    Attributes:
        model, weights, revision, target, precision, block_size, vision_precision, embed_precision, head_precision,
        asymmetric, options: as of the export that will use it.
        method: a name of calibrate.methods.METHODS.
        samples: how many; None for `SAMPLES` built-in ones, or for all of ``data``.
        data: a user's folder; None for the built-in samples.
        sample_set: which built-in ones, of `SAMPLE_SETS`; None for ``demo`` where the checkpoint is one, else ``machine``,
            or ``general`` where the machine has too few texts.
        text_only: leave the pictures out.
        backend: the only one of the target's backends to make codes for; None for all of them.
        choice: a file of calibrate search; its wider layers get no codes.
        held_out: pictures or samples on which the finished codes are held against plain rounding; 0 for no such check, None
            for `HELD_OUT` of them where the model is small.
        tune_scales: steps of end-to-end tuning of the decoder's int4 scales once all codes are chosen; 0 for none.
        sequential: later blocks see what the quantised earlier ones give, instead of the full-precision ones.

    Raises:
        UsageError: on construction, for a value that no calibration could use.
    """

    model: str
    target: str
    method: str
    output: Path
    weights: str | None = None
    revision: str | None = None
    precision: str | None = None
    block_size: int | str | None = None
    vision_precision: str | None = None
    embed_precision: str | None = None
    head_precision: str | None = None
    asymmetric: bool = False
    options: Mapping[str, object] = field(default_factory=dict)
    samples: int | None = None
    data: Path | None = None
    sample_set: str | None = None
    text_only: bool = False
    seed: int = 0
    held_out: int | None = None
    tune_scales: int = 0
    sequential: bool = True
    backend: str | None = None
    choice: Path | None = None
    resume: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        refuse_unknown(self.method)
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"--samples {self.samples}", "a whole number of at least 1", "correct the number")
        if self.sample_set is not None and self.sample_set not in SAMPLE_SETS:
            raise UsageError(f"--sample-set {self.sample_set}", "one of " + ", ".join(SAMPLE_SETS), "choose one of these")
        if self.sample_set is not None and self.data is not None:
            raise UsageError("--sample-set and --calibration-data were both given", "one of them", "leave one out")
        if self.held_out is not None and self.held_out < 0:
            raise UsageError(f"--held-out {self.held_out}", "a whole number, 0 for no check", "correct the number")
        if self.tune_scales < 0:
            raise UsageError(
                f"--tune-scales {self.tune_scales}", "a whole number of steps, 0 for none", "correct the number"
            )
        self.export()

    def export(self) -> ExportRequest:
        """The export this is for."""
        return ExportRequest(
            model=self.model,
            target=self.target,
            weights=self.weights,
            precision=self.precision,
            output=self.output,
            vision_precision=self.vision_precision,
            block_size=self.block_size,
            embed_precision=self.embed_precision,
            head_precision=self.head_precision,
            asymmetric=self.asymmetric,
            options=self.options,
            revision=self.revision,
            resume=self.resume,
            force=self.force,
        )
