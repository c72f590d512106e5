"""Which layers of a vision tower need a finer form: what rounding each alone costs, then as few as the worst token needs.

Layers of an ``int8`` tower round matrix and input. What that costs is measured on pictures, one layer at a time: how far
the worst token of a picture is from full precision, as 1 minus its cosine, in the mean over pictures. Layers then get finer
forms (`export.backends.record.Form`), most distance saved per product of bytes added first, until the worst token of all
pictures, held-out ones too, is near enough; and lose them again where it stays so. Every sensitivity is written down at
once, so that a search that was cut off goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.backends.registry import backend_named
from export.quantisation.choice import forms
from export.quantisation.spec import Assignment
from runtime_py.contracts import VISION
from runtime_py.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from export.quantisation.codes import WeightProvider
    from export.specs import ModelSpec

log = logging.getLogger("edgeproof")

PLANNED = "as planned"
TOGETHER = 16
"""Pictures of one size that go through the tower in one call."""

Inputs = Mapping[str, "np.ndarray"]
"""What the tower reads of one picture, by the names of its contract."""


class MeasuredTower:
    """A tower in PyTorch whose layers are held in full precision or in a form of a package.

    One copy of its matrices is in memory; a layer's changes when its form does.
    """

    def __init__(self, spec: ModelSpec, weights: WeightProvider, layers: Sequence[str]) -> None:
        import torch

        from export.modules.build import build_stage
        from export.modules.kernels import Kernels

        self.weights, self._forms = weights, dict[str, Assignment]()
        with torch.device("meta"):
            self._module = build_stage(spec, VISION, Kernels())
        for name, _ in list(self._module.named_parameters()):
            self._load(name, weights.tensor(f"{VISION}.{name}"))
        self._module.eval()
        for layer in layers:
            self._module.get_submodule(layer.removeprefix(f"{VISION}.")).register_forward_pre_hook(self._rounding(layer))

    def hold(self, assignments: Mapping[str, Assignment]) -> None:
        """Hold these layers as assigned, all others in full precision."""
        for layer in {**self._forms, **assignments}:
            if self._forms.get(layer) != assignments.get(layer):
                self._load(f"{layer.removeprefix(f'{VISION}.')}.weight", self._matrix(layer, assignments.get(layer)))
        self._forms = dict(assignments)

    def features(self, inputs: Inputs) -> Tensor:
        """(pieces, tokens, width) float32."""
        import torch

        with torch.inference_mode():
            made: Tensor = self._module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        return made

    def _matrix(self, layer: str, assignment: Assignment | None) -> Tensor:
        from export.quantisation.grids import GRIDS

        weight = self.weights.tensor(f"{layer}.weight").float()
        if assignment is None:
            return weight
        if not assignment.grid:
            return weight.half().float()
        grid = GRIDS[assignment.grid]
        return grid.dequantise(grid.quantise(weight))[:, : assignment.layer.columns]

    def _rounding(self, layer: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]:
        from export.backends.onnx.token_rounding import rounding_of

        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            form = self._forms.get(layer)
            if form is None or not form.grid:
                return None
            return (rounding_of(layer, form.grid)(given[0]),)

        return hook

    def _load(self, name: str, value: Tensor) -> None:
        import torch

        owner, _, leaf = name.rpartition(".")
        parameter = torch.nn.Parameter(value.float().contiguous(), requires_grad=False)
        setattr(self._module.get_submodule(owner), leaf, parameter)


class Distances:
    """How far a tower's tokens are from full precision on some pictures; made while it holds every layer in that."""

    def __init__(self, tower: MeasuredTower, pictures: Sequence[Inputs]) -> None:
        self.tower, self.count = tower, len(pictures)
        self._calls = list(_together(pictures))
        self._expected = [tower.features(call) for call in self._calls]

    def worst(self) -> Tensor:
        """1 minus the cosine of the worst token of each piece of a picture, float64, as the tower is held now."""
        import torch

        found = []
        for call, expected in zip(self._calls, self._expected, strict=True):
            given = self.tower.features(call)
            cosines = torch.nn.functional.cosine_similarity(expected.double(), given.double(), dim=-1)
            found.append(1 - cosines.amin(-1))
        return torch.cat(found)


def _together(pictures: Sequence[Inputs]) -> Iterator[dict[str, np.ndarray]]:
    """Calls of pictures of one size, where the tower reads nothing but their pixels; others one by one."""
    import numpy as np

    sizes: dict[tuple[int, ...], list[np.ndarray]] = {}
    for inputs in pictures:
        if len(inputs) > 1:
            yield dict(inputs)
            continue
        ((name, pixels),) = inputs.items()
        sizes.setdefault(pixels.shape[1:], []).append(pixels)
    for alike in sizes.values():
        for start in range(0, len(alike), TOGETHER):
            yield {name: np.concatenate(alike[start : start + TOGETHER])}


@dataclass(frozen=True)
class Step:
    """One layer in one finer form: ``saved`` of the mean worst distance for ``added`` products of bytes."""

    layer: str
    form: str
    saved: float
    added: int


@dataclass(frozen=True)
class Worst:
    """Cosine of the worst token, of the samples and of held-out pictures."""

    samples: float
    held_out: float

    def __str__(self) -> str:
        return f"worst token {self.samples:.5f} on samples, {self.held_out:.5f} on held-out pictures"


class VisionSearch:
    """One tower's search.

    Args:
        planned: what its layers become without a choice; those with finer forms are searched.
        samples, held_out: pictures as the tower reads them.
        known: sensitivities measured before, by ``layer form``; grows.
        save: called after each measurement.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: WeightProvider,
        backend: str,
        planned: Mapping[str, Assignment],
        samples: Sequence[Inputs],
        held_out: Sequence[Inputs],
        known: dict[str, float],
        save: Callable[[], None],
    ) -> None:
        self.planned = {name: a for name, a in planned.items() if name.startswith(f"{VISION}.") and _may(backend, a)}
        self.forms = {name: _finer(backend, a) for name, a in self.planned.items()}
        self.products = {form.name: form.products for row in backend_named(backend).finer.values() for form in row}
        self.known, self.save = known, save
        self.tower = MeasuredTower(spec, weights, list(self.planned))
        self.samples, self.held_out = Distances(self.tower, samples), Distances(self.tower, held_out)

    def steps(self) -> list[Step]:
        """For each layer the steps to finer forms, most distance saved per product first."""
        found = []
        for layer, offered in self.forms.items():
            before, size = self._sensitivity(layer, PLANNED), self._products(layer, PLANNED)
            for form in offered:
                after, products = self._sensitivity(layer, form), self._products(layer, form)
                found.append(Step(layer, form, max(before - after, 0.0), products - size))
                before, size = min(before, after), products
        return sorted(found, key=lambda step: (-step.saved / step.added, step.added, step.layer))

    def until(self, cosine: float) -> tuple[dict[str, str], Worst]:
        """The fewest steps, in order, with which every token reaches the cosine; then without those it does not need.

        Raises:
            UsageError: it is not reached with every layer in its finest form.
        """
        order = self.steps()
        reached = self.worst(self._prefix(order, len(order)))
        if not _passes(reached, cosine):
            raise UsageError(
                f"a cosine of {cosine:g} is not reached with every vision layer in its finest form: {reached}",
                f"at most {min(reached.samples, reached.held_out):.5f}",
                "lower --cosine, or export with --vision-precision fp32",
            )
        low, high = -1, len(order)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if _passes(self.worst(self._prefix(order, middle)), cosine) else (middle, high)
        chosen = self._prefix(order, high)
        for step in reversed(order[:high]):
            if chosen.get(step.layer) == step.form:
                less = self._without(chosen, step)
                chosen = less if _passes(self.worst(less), cosine) else chosen
        return chosen, self.worst(chosen)

    def worst(self, chosen: Mapping[str, str]) -> Worst:
        """What the tower gives with these forms, and its other layers as planned."""
        self.tower.hold({layer: self._held(layer, chosen.get(layer, PLANNED)) for layer in self.planned})
        worst = Worst(*(1 - float(side.worst().max()) for side in (self.samples, self.held_out)))
        log.info("%d of %d vision layers finer: %s", len(chosen), len(self.planned), worst)
        return worst

    def cost(self, chosen: Mapping[str, str]) -> float:
        """How many products of bytes the tower's layers take, over those of the plan."""
        planned = sum(self._products(layer, PLANNED) for layer in self.planned)
        return sum(self._products(layer, chosen.get(layer, PLANNED)) for layer in self.planned) / planned

    def _sensitivity(self, layer: str, form: str) -> float:
        key = f"{layer} {form}"
        if key not in self.known:
            self.tower.hold({layer: self._held(layer, form)})
            self.known[key] = float(self.samples.worst().mean())
            log.debug("%s alone, %s: %.3e", layer, form, self.known[key])
            self.save()
        return self.known[key]

    def _held(self, layer: str, form: str) -> Assignment:
        return self.planned[layer] if form == PLANNED else self.forms[layer][form]

    def _products(self, layer: str, form: str) -> int:
        from export.backends.onnx.choices import rounds_finely

        shape = self.planned[layer].layer
        each = (2 if rounds_finely(layer) else 1) if form == PLANNED else self.products[form]
        return each * shape.rows * shape.columns

    def _prefix(self, order: Sequence[Step], count: int) -> dict[str, str]:
        chosen: dict[str, str] = {}
        for step in order[:count]:
            names = [PLANNED, *self.forms[step.layer]]
            if names.index(step.form) > names.index(chosen.get(step.layer, PLANNED)):
                chosen[step.layer] = step.form
        return chosen

    def _without(self, chosen: Mapping[str, str], step: Step) -> dict[str, str]:
        """With the layer in the form before this one."""
        names = [PLANNED, *self.forms[step.layer]]
        before = names[names.index(step.form) - 1]
        rest = {layer: form for layer, form in chosen.items() if layer != step.layer}
        return rest if before == PLANNED else {**rest, step.layer: before}


def _passes(worst: Worst, cosine: float) -> bool:
    return min(worst.samples, worst.held_out) >= cosine


def _may(backend: str, assignment: Assignment) -> bool:
    return assignment.grid in backend_named(backend).finer


def _finer(backend: str, assignment: Assignment) -> dict[str, Assignment]:
    """The forms of a layer that are finer than what it has: 14 bits are none up to the first block."""
    from export.backends.onnx.choices import rounds_finely

    name = assignment.layer.name
    offered = forms(backend, assignment)
    if rounds_finely(name):
        offered = {form: a for form, a in offered.items() if not a.grid}
    return offered
