"""What a parity run found, apart from what anyone thinks of it: plain records that go to JSON and back.

A stored run holds metrics only. Verdicts are made from it by `parity_tests.judging.judge`, as often as one likes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from parity_tests.judging import run_details
from parity_tests.judging.metrics import Kind
from parity_tests.judging.run_details import Details
from parity_tests.judging.standards import Standard
from runtime_py.errors import UsageError
from runtime_py.files.json_file import MEGABYTE, parse_json, read_bytes

MAX_BYTES = 64 * MEGABYTE
"""Of a stored run."""

SCHEMA = 4
READ = (3, SCHEMA)
"""Schemas that are read; in the third every comparison is of the first decoder. Until 2, figures of logits were taken with
what all tokens of a row have in common, and over picture rows as well: they cannot be held against today's limits, nor
beside today's figures."""

ROUNDED_INPUTS = "rounded inputs"
"""The comparison that tells what rounding the inputs of layers does to a model (parity_tests.check.rounded_inputs)."""


@dataclass(frozen=True)
class Measurement:
    """One array of the candidate beside the baseline's.

    Attributes:
        probe: its name; ``stage`` is the first to blame when everything before it agrees.
        shape: the baseline's shape.
        metrics: by name; empty when the two could not be compared.
        problem: why not, when shapes differ or the run broke; judged as a failure.
        not_probed: why nobody looked; no failure unless the probe is a required one.
        required: whether looking is a duty.
        series: figures per position: ``kl`` and ``top1`` of logits, ``reference`` and ``candidate`` tokens of answers.
    """

    probe: str
    stage: str
    kind: Kind
    shape: tuple[int, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""
    not_probed: str = ""
    required: bool = False
    series: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """All measurements of one candidate against one baseline, under one standard.

    Attributes:
        name: ``golden``, ``package``, ``implementation`` or ``loss``.
        question: which prompt, e.g. ``p0_``; "" when there is only one.
        seconds: that the candidate took to answer, by the clock; 0 where that was not measured.
        decoder: which of a package's decoders answers, in words; "" for the first.
    """

    name: str
    standard: Standard
    baseline: str
    candidate: str
    measurements: tuple[Measurement, ...]
    question: str = ""
    seconds: float = 0.0
    decoder: str = ""

    @property
    def title(self) -> str:
        """``kernels``; with the decoder before it where there are two: ``many rows: kernels``."""
        return f"{self.decoder}: {self.name}" if self.decoder else self.name


@dataclass(frozen=True)
class Divergence:
    """Where two runs part: the first stage, and inside it the first block, when it could be found.

    Attributes:
        blocks: (block, relative_max) for every block compared, in running order.
        note: what was or was not possible.
        step: the first answer step that differs, from 1, when the prompt's own call agrees; 0 otherwise.
    """

    stage: str
    block: str = ""
    blocks: tuple[tuple[str, float], ...] = ()
    note: str = ""
    step: int = 0

    @property
    def place(self) -> str:
        """``stage decoder, block layers.0, answer step 1``, as far as it is known."""
        parts = [f"stage {self.stage}"] if self.stage else []
        parts += [f"block {self.block}"] if self.block else []
        return ", ".join([*parts, f"answer step {self.step}"] if self.step else parts)


@dataclass(frozen=True)
class Run:
    """Everything one invocation of parity_tests found.

    Attributes:
        case: the golden's or package's folder name.
        not_run: (what, why) for everything this machine could not run.
        environment: library and machine facts by name.
        accuracy: task accuracy figures by name, when the checkpoint has a task.
        details: what nobody judges: answers, errors inside stages, costs of layers.
    """

    case: str
    family: str
    variant: str
    target: str
    precision: str
    backend: str
    comparisons: tuple[Comparison, ...]
    not_run: tuple[tuple[str, str], ...] = ()
    divergence: Divergence | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    accuracy: Mapping[str, float] = field(default_factory=dict)
    details: Details = field(default_factory=Details)

    def with_divergence(self, divergence: Divergence | None) -> Run:
        return replace(self, divergence=divergence)


def to_json(run: Run) -> dict[str, Any]:
    """A JSON object; infinities become the strings ``inf`` and ``-inf`` because JSON has none."""
    return {
        "schema": SCHEMA,
        "case": run.case,
        "family": run.family,
        "variant": run.variant,
        "target": run.target,
        "precision": run.precision,
        "backend": run.backend,
        "comparisons": [_comparison_to_json(comparison) for comparison in run.comparisons],
        "not_run": [list(pair) for pair in run.not_run],
        "divergence": None
        if run.divergence is None
        else {
            "stage": run.divergence.stage,
            "block": run.divergence.block,
            "blocks": [[name, encode(value)] for name, value in run.divergence.blocks],
            "note": run.divergence.note,
            "step": run.divergence.step,
        },
        "environment": dict(run.environment),
        "command": run.command,
        "accuracy": {name: encode(value) for name, value in run.accuracy.items()},
        "details": run_details.to_json(run.details),
    }


def _comparison_to_json(comparison: Comparison) -> dict[str, Any]:
    rows = [
        {
            "probe": m.probe,
            "stage": m.stage,
            "kind": str(m.kind),
            "shape": list(m.shape),
            "metrics": {name: encode(value) for name, value in m.metrics.items()},
            "problem": m.problem,
            "not_probed": m.not_probed,
            "required": m.required,
            "series": {name: [encode(value) for value in values] for name, values in m.series.items()},
        }
        for m in comparison.measurements
    ]
    return {
        "name": comparison.name,
        "decoder": comparison.decoder,
        "standard": str(comparison.standard),
        "baseline": comparison.baseline,
        "candidate": comparison.candidate,
        "question": comparison.question,
        "seconds": comparison.seconds,
        "measurements": rows,
    }


def from_json(value: Mapping[str, Any]) -> Run:
    """The run that `to_json` wrote.

    Raises:
        UsageError: another schema, or a missing or wrong key.
    """
    try:
        if value["schema"] not in READ:
            raise ValueError(f"schema {value['schema']}")
        divergence = value["divergence"]
        return Run(
            case=value["case"],
            family=value["family"],
            variant=value["variant"],
            target=value["target"],
            precision=value["precision"],
            backend=value["backend"],
            comparisons=tuple(_comparison_from_json(row) for row in value["comparisons"]),
            not_run=tuple((what, why) for what, why in value["not_run"]),
            divergence=None
            if divergence is None
            else Divergence(
                divergence["stage"],
                divergence["block"],
                tuple((name, decode(number)) for name, number in divergence["blocks"]),
                divergence["note"],
                divergence["step"],
            ),
            environment=dict(value["environment"]),
            command=value["command"],
            accuracy={name: decode(number) for name, number in value["accuracy"].items()},
            details=run_details.from_json(value["details"]),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"this is no stored parity run: {error!r}",
            f"run.json of schema {READ[0]} or {SCHEMA}, as --report-dir writes it",
            "run the comparison again",
        ) from error


def _comparison_from_json(row: Mapping[str, Any]) -> Comparison:
    return Comparison(
        row["name"],
        Standard(row["standard"]),
        row["baseline"],
        row["candidate"],
        tuple(
            Measurement(
                m["probe"],
                m["stage"],
                Kind(m["kind"]),
                tuple(m["shape"]),
                {name: decode(number) for name, number in m["metrics"].items()},
                m["problem"],
                m["not_probed"],
                m["required"],
                {name: tuple(decode(number) for number in numbers) for name, numbers in m["series"].items()},
            )
            for m in row["measurements"]
        ),
        row["question"],
        float(row["seconds"]),
        row.get("decoder", ""),
    )


def read(path: Path) -> Run:
    """A stored run from its file, or from the folder of its report; UsageError when there is none."""
    path = path / "run.json" if path.is_dir() else path
    again = "name a folder that --report-dir was told, or the run.json in it"
    content = read_bytes(path, MAX_BYTES, UsageError, again)
    return from_json(parse_json(content, path, UsageError, again, strict=False, room=4))


def encode(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def decode(value: float | str) -> float:
    return float(value)
