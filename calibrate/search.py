"""Mixed bits: how much each layer costs when it alone has four bits, then more bits where a byte buys most.

Sensitivity is the mean KL (nats per answer token) that quantising one layer alone brings, on a demo's questions or on any
samples. Going from the most to the
least KL saved per byte added, layers are widened until the package fits a budget's edge or a gate passes. Every
measurement is written down at once, so that a search that was cut off goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate.evaluation.score import Evaluation, Score
from export.quantisation.block_length import stored_bytes
from export.quantisation.choice import shared, widen
from export.quantisation.codes import CodeSource, DequantisedWeights, RoundToNearest, WeightProvider
from export.quantisation.grids import GRIDS
from export.quantisation.spec import Assignment, Storage
from runtime_py.errors import UsageError

log = logging.getLogger("edgeproof")


@dataclass(frozen=True)
class Gate:
    """What a choice must reach.

    Attributes:
        cosine: mean cosine at answer positions of logits without their row's mean, at least; None for no such limit.
        task: points of task accuracy that may be lost against full precision.
        kl: mean nats per answer position, at most.
    """

    cosine: float | None = None
    task: float | None = None
    kl: float | None = None

    @classmethod
    def parse(cls, text: str) -> Gate:
        """``cosine=0.995,task=1pt,kl=0.01``.

        Raises:
            UsageError: a gate of another spelling.
        """
        bounds: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = part.strip().partition("=")
            try:
                bounds[{"cosine": "cosine", "task": "task", "kl": "kl"}[name]] = float(value.removesuffix("pt"))
            except (KeyError, ValueError) as error:
                raise UsageError(f"--gate {text}", "e.g. cosine=0.995,task=1pt or kl=0.01", "correct the gate") from error
        return cls(**bounds)

    def check(self, evaluation: Evaluation) -> None:
        """Raise UsageError where the gate speaks of a task and the evaluation has none."""
        if self.task is not None and not evaluation.has_task:
            raise UsageError(
                f"--gate task={self.task:g}pt on {evaluation.source}, which have no known right answers",
                "a demo checkpoint asked its own questions, or a gate on cosine or kl",
                "leave task out of the gate; on a demo checkpoint, leave --calibration-data out instead",
            )

    def passes(self, score: Score, full: Score) -> bool:
        if self.cosine is not None and score.cosine < self.cosine:
            return False
        if self.kl is not None and score.kl > self.kl:
            return False
        if self.task is None:
            return True
        if score.accuracy is None or full.accuracy is None:
            raise ValueError("a task gate without a task; see check")
        return 100 * (full.accuracy - score.accuracy) <= self.task + 1e-9


@dataclass(frozen=True)
class Upgrade:
    """One layer in one wider storage; ``saved`` nats of KL for ``added`` bytes."""

    layer: str
    storage: Storage
    saved: float
    added: int


class Search:
    """One backend's search.

    Args:
        codes: int4 codes of all layers; ``weights`` are those that they belong to (with a calibration's overlay).
        wider: storages that may be chosen, narrow to wide, with their grids (export.backends.record.Backend).
        known: sensitivities measured before, by ``layer storage``; grows.
        save: called after each measurement.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        weights: WeightProvider,
        codes: CodeSource,
        assignments: Mapping[str, Assignment],
        layers: Sequence[str],
        wider: Mapping[Storage, str],
        known: dict[str, float],
        save: Callable[[], None],
    ) -> None:
        self.evaluation, self.weights, self.codes = evaluation, weights, codes
        self.assignments, self.layers, self.wider, self.storages = assignments, layers, wider, tuple(wider)
        self.known, self.save = known, save

    def upgrades(self) -> list[Upgrade]:
        """For each layer the steps to wider storages, most KL saved per byte first; a layer's steps keep their order."""
        upgrades = []
        for layer in self.layers:
            narrow = self.assignments[layer]
            before, size = self._sensitivity(layer, narrow), stored_bytes(narrow)
            for storage in self.storages:
                wide = widen(narrow, storage, self.wider)
                after, wider = (0.0 if storage is Storage.FP16 else self._sensitivity(layer, wide)), stored_bytes(wide)
                upgrades.append(Upgrade(layer, storage, max(before - after, 0.0), wider - size))
                before, size = min(before, after), wider
        return sorted(upgrades, key=lambda u: (-u.saved / max(u.added, 1), self.storages.index(u.storage), u.layer))

    def within(self, room: int) -> dict[str, str]:
        """Forms of the layers widened with at most ``room`` more bytes than all of them in four bits."""
        chosen: dict[str, str] = {}
        for upgrade in self.upgrades():
            if upgrade.added <= room and self._next(chosen, upgrade):
                chosen[upgrade.layer] = str(upgrade.storage)
                room -= upgrade.added
        return chosen

    def until(self, gate: Gate, full: Score) -> tuple[dict[str, str], Score]:
        """The fewest upgrades, in order, with which the gate passes.

        Raises:
            UsageError: it does not pass with all of them.
        """
        order = self.upgrades()
        steps = [self._prefix(order, count) for count in range(len(order) + 1)]
        scores: dict[int, Score] = {}

        def passes(count: int) -> bool:
            if count not in scores:
                scores[count] = self.score(steps[count])
                log.info("%d of %d widened: %s", len(steps[count]), len(self.layers), scores[count])
            return gate.passes(scores[count], full)

        if not passes(len(order)):
            raise UsageError(
                f"the gate does not pass with every layer in {self.storages[-1]}: {scores[len(order)]}",
                "a gate that the layers which stay narrow (vision, embedding) allow",
                "lower the gate, or choose another storage for those layers with --vision-precision",
            )
        low, high = -1, len(order)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if passes(middle) else (middle, high)
        return steps[high], scores[high]

    def score(self, storages: Mapping[str, str]) -> Score:
        """What a choice gives."""
        changed = {
            layer: widen(self.assignments[layer], Storage(storage), self.wider) for layer, storage in storages.items()
        }
        return self.evaluation.score(self._provider(shared({**self.assignments, **changed})))

    def _sensitivity(self, layer: str, assignment: Assignment) -> float:
        key = f"{layer} {assignment.storage}"
        if key not in self.known:
            self.known[key] = self.evaluation.score(self._provider({layer: assignment})).kl
            log.debug("%s alone in %s: KL %.3e", layer, assignment.storage, self.known[key])
            self.save()
        return self.known[key]

    def _provider(self, assignments: Mapping[str, Assignment]) -> WeightProvider:
        codes = _Mixed(self.codes, RoundToNearest(self.weights, assignments, GRIDS), self.assignments, assignments)
        return DequantisedWeights(self.weights, codes, assignments, GRIDS)

    def _prefix(self, order: Sequence[Upgrade], count: int) -> dict[str, str]:
        chosen: dict[str, str] = {}
        for upgrade in order[:count]:
            if self._next(chosen, upgrade) or self.storages.index(upgrade.storage) > 0:
                chosen[upgrade.layer] = str(upgrade.storage)
        return chosen

    def _next(self, chosen: Mapping[str, str], upgrade: Upgrade) -> bool:
        """Whether the layer stands one storage below the upgrade."""
        place = self.storages.index(upgrade.storage)
        held = chosen.get(upgrade.layer)
        return held == str(self.storages[place - 1]) if place else held is None


class _Mixed:
    """Stored codes where a layer keeps its grid, rounding where it has another."""

    def __init__(
        self,
        stored: CodeSource,
        rounding: CodeSource,
        before: Mapping[str, Assignment],
        after: Mapping[str, Assignment],
    ) -> None:
        self.stored, self.rounding, self.before, self.after = stored, rounding, before, after

    def rows(self, layer: str, start: int, stop: int) -> Any:
        same = self.before[layer].grid == self.after[layer].grid
        return (self.stored if same else self.rounding).rows(layer, start, stop)


def write_choice(path: Path, value: Mapping[str, Any]) -> None:
    from export.package.journal import write_json

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)
