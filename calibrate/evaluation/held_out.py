"""The check that ends a calibration: end to end, on samples it has not seen, no worse than plain rounding.

Less error in every layer's output is no promise for the logits. So the calibrated codes and plain rounding are both held
against full precision. Where the calibrated ones have the larger mean KL or the smaller mean cosine, blocks go back to plain
rounding: each block's return is measured by itself, then they return together, the most helpful first, until neither figure
is behind. The last step is plain rounding itself, so this ends. Every measurement is on the disk before the next begins.

Larger or smaller means by more than `MARGIN` standard errors of the mean difference, position by position: a mean KL is made
by a few unsure positions, and a rule that heeds every difference undoes gains (docs/results/calibration.md).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrate.blockwise import PartlyQuantised
from calibrate.evaluation.score import Evaluation, Positions
from calibrate.request import HELD_OUT
from export.quantisation.codes import WeightProvider
from export.quantisation.spec import Assignment
from export.quantisation.stored import read_overlay

if TYPE_CHECKING:
    from torch import Tensor

    from export.package.journal import Journal
    from export.specs import ModelSpec

log = logging.getLogger("edgeproof")

SMALL = 100_000_000
"""Parameters of a model that is checked without being asked to."""

SINGLY = 16
"""Blocks up to which each one's return is measured; a model with more returns whole."""

DIGITS = 6
"""Significant digits of a figure, on which decisions are made too."""

MARGIN = 2.0
"""Standard errors that a mean difference must exceed to count; one odd position alone makes about one."""


@dataclass(frozen=True)
class Figures:
    """Means over answer positions against full precision, and mean differences from plain rounding with standard errors.

    Attributes:
        kl, cosine: nats, and cosine of the logits.
        kl_more, cosine_less: how much worse than plain rounding; negative where better.
    """

    kl: float
    cosine: float
    kl_more: float = 0.0
    kl_error: float = 0.0
    cosine_less: float = 0.0
    cosine_error: float = 0.0

    @classmethod
    def of(cls, positions: Positions, plain: Positions) -> Figures:
        kl, cosine = positions.kl - plain.kl, plain.cosine - positions.cosine
        means = (positions.kl.mean(), positions.cosine.mean(), kl.mean(), _error(kl), cosine.mean(), _error(cosine))
        return cls(*(float(f"{float(value):.{DIGITS}g}") for value in means))

    @property
    def far(self) -> bool:
        """Whether the mean KL is larger than plain rounding's by more than chance."""
        return self.kl_more > MARGIN * self.kl_error

    @property
    def no_worse(self) -> bool:
        """Whether neither figure is behind plain rounding's by more than chance."""
        return not self.far and self.cosine_less <= MARGIN * self.cosine_error


Measure = Callable[[frozenset[str]], Figures]
"""Figures with some blocks back at plain rounding."""


def returned(blocks: Sequence[str], measure: Measure) -> list[str]:
    """The blocks that go back to plain rounding, most helpful first; at most twice as many measurements as blocks."""
    calibrated = measure(frozenset())
    if calibrated.no_worse:
        return []
    if len(blocks) > SINGLY:
        return list(blocks)
    alone = {block: measure(frozenset([block])) for block in blocks}
    order = sorted(blocks, key=lambda block: alone[block].kl if calibrated.far else -alone[block].cosine)
    enough = (n for n in range(1, len(order)) if measure(frozenset(order[:n])).no_worse)
    return order[: next(enough, len(order))]


class HeldOutCheck:
    """One backend's check.

    Args:
        evaluation: on samples that the calibration has not seen.
        weights: the checkpoint's.
        files: every calibrated layer's file, blocks in their order.
        journal: of the folder that measurements go to, as ``<backend>/held_out.json``.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        weights: WeightProvider,
        assignments: Mapping[str, Assignment],
        files: Mapping[str, Path],
        journal: Journal,
        backend: str,
    ) -> None:
        self.evaluation, self.weights, self.assignments = evaluation, weights, assignments
        self.journal, self.backend = journal, backend
        self.blocks: dict[str, list[str]] = {}
        self.files: dict[str, Path] = {}
        for layer, file in files.items():
            block = file.name.removesuffix(".safetensors")
            self.blocks.setdefault(block, []).append(layer)
            self.files[block] = file
        self._path = Path(backend) / "held_out.json"
        self._known: dict[str, Figures] = {}
        self._plain: Positions | None = None
        if self._step in journal.steps:
            stored = json.loads((journal.folder / self._path).read_text(encoding="utf-8"))
            self._known = {name: Figures(**row) for name, row in stored.items()}

    @property
    def _step(self) -> str:
        return f"{self.backend} held out"

    def run(self) -> dict[str, Any]:
        """What the manifest says of the check; ``rounded_layers`` have no codes of their own any more."""
        every = frozenset(self.blocks)
        plain, calibrated = self._measure(every), self._measure(frozenset())
        gone = returned(list(self.blocks), self._measure)
        kept = self._measure(frozenset(gone))
        layers = [layer for block in self.blocks if block in gone for layer in self.blocks[block]]
        record = {
            "source": self.evaluation.source,
            "count": self.evaluation.count,
            "margin": MARGIN,
            "rounded": {"kl": plain.kl, "cosine": plain.cosine},
            "calibrated": vars(calibrated),
            "kept": vars(kept),
            "one_block_rounded": {b: vars(self._known[b]) for b in self.blocks if b in self._known and len(self.blocks) > 1},
            "rounded_blocks": gone,
            "rounded_layers": layers,
            "reason": _reason(plain, calibrated, gone, len(self.blocks)),
        }
        log.info("%s on held-out %s: %s", self.backend, self.evaluation.source, record["reason"])
        return record

    def _measure(self, rounded: frozenset[str]) -> Figures:
        key = "+".join(block for block in self.blocks if block in rounded)
        if key not in self._known:
            if self._plain is None:
                self._plain = self.evaluation.positions(self._provider(frozenset(self.blocks)))
            every = len(rounded) == len(self.blocks)
            positions = self._plain if every else self.evaluation.positions(self._provider(rounded))
            self._known[key] = Figures.of(positions, self._plain)
            self._save()
        return self._known[key]

    def _provider(self, rounded: frozenset[str]) -> WeightProvider:
        made = PartlyQuantised(self.weights, self.assignments, frozenset())
        for block, layers in self.blocks.items():
            if block not in rounded:
                made.overlay.update(read_overlay(self.files[block]))
                made.files |= dict.fromkeys(layers, self.files[block])
        return made

    def _save(self) -> None:
        from export.package.journal import write_json

        whole = self.journal.folder / self._path
        whole.parent.mkdir(parents=True, exist_ok=True)
        write_json(whole, {name: vars(figures) for name, figures in self._known.items()})
        self.journal.finish(self._step, [self._path])


def count_of(asked: int | None, spec: ModelSpec) -> int:
    """How many pictures or samples a calibration is checked on: as asked, else `HELD_OUT` for small models."""
    from export.modules.build import parameter_count

    if asked is not None:
        return asked
    return HELD_OUT if parameter_count(spec) <= SMALL else 0


def cost(asked: int | None, spec: ModelSpec, blocks: int) -> str:
    """One line for the plan: what the check takes, in passes of its samples through the whole model."""
    from export.modules.build import parameter_count

    count, size = count_of(asked, spec), parameter_count(spec)
    most = 2 * blocks + 1 if blocks <= SINGLY else 3
    passes = f"3 to {most} passes" if most > 3 else "3 passes"
    if count:
        return f"held-out check: {passes} of {count} samples; blocks worse than plain rounding go back to it"
    if asked is None:
        return (
            f"held-out check: none, since {size / 1e9:.1f} thousand million parameters would take {passes} of the whole "
            f"model; ask for one with --held-out {HELD_OUT}"
        )
    return "held-out check: none"


def _reason(plain: Figures, calibrated: Figures, gone: Sequence[str], blocks: int) -> str:
    figures = f"KL {calibrated.kl:.3g}, rounded {plain.kl:.3g}; cosine {calibrated.cosine:.6g}, rounded {plain.cosine:.6g}"
    if not gone:
        behind = calibrated.kl_more > 0 or calibrated.cosine_less > 0
        return f"calibrated codes are {'within chance of' if behind else 'no worse than'} rounding ({figures})"
    which = "every block goes" if len(gone) == blocks else f"{', '.join(gone)} {'go' if len(gone) > 1 else 'goes'}"
    return f"calibrated codes are worse than rounding ({figures}): {which} back to it"


def _error(values: Tensor) -> Tensor:
    """Standard error of the mean of one value per position; 0 for a single one."""
    return values.std(correction=0) / max(len(values) - 1, 1) ** 0.5
