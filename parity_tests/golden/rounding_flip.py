"""A gate logit on the other side of a float16 rounding boundary: shown to be that, or a failure.

Awaker's gates round their logits to float16. Two float32 implementations may stand on either side of a boundary; then a
gate's weight moves by up to 2e-3 and logits by up to 1e-2 (golden's README), and nothing is wrong. That is shown here on the
side under test itself: logits within float32 noise of a boundary are found from the baseline's own gate input, its stored
weights say which side it took, and the gate input is moved by as little as puts them there. If every array then agrees
within the ordinary limits, gates and logits without the move are judged by ``Standard.GOLDEN_FLIPPED``; all other arrays are
judged with it, as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from parity_tests.check.candidate import Candidate
from parity_tests.golden.case import GoldenCase
from parity_tests.golden.inside import AskedOnce
from parity_tests.golden.routing import gate_input, layer_gates
from parity_tests.judging.judge import all_hold
from parity_tests.judging.results import Comparison, Measurement
from parity_tests.judging.standards import Standard
from parity_tests.reference.checkpoint_side import Checkpoint, reference
from parity_tests.reference.reference import TorchBackend
from runtime_py.backends.base import Arrays
from runtime_py.contracts import DECODER
from runtime_py.preprocess.base import Layout

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")

NOISE = 4e-6
"""Of a gate logit, relative to its size or to 1: how far two float32 implementations may lie apart."""

MOVED = "gate input moved across"
"""Question of the comparison that shows a rounding flip."""

TIGHT = (Standard.GOLDEN, Standard.FP32, Standard.STORED_FLOAT32)
"""Standards that a rounding flip breaks; the others allow more than one moves."""

Offsets = dict[Phase, np.ndarray]
"""What to add to the gate input of each phase, float32 (1, hidden)."""

Measure = Callable[[Candidate], Sequence[Measurement]]
"""The arrays of one prompt, measured on a side."""


@dataclass(frozen=True)
class Boundary:
    """One logit near a rounding boundary: its row of the Jacobian, and the change that puts it on the golden's side."""

    slope: Tensor
    change: float


class MovedGateInput:
    """A processor whose gate input is moved by a constant in each phase."""

    def __init__(self, inner: Any, offsets: Mapping[Phase, np.ndarray]) -> None:
        self._inner, self._offsets = inner, offsets

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def embedding_inputs(self, layout: Layout, merged: np.ndarray, raw: np.ndarray, phase: Phase) -> Arrays:
        embedded = self._inner.embedding_inputs(layout, merged, raw, phase)
        return {**embedded, "gate_input": embedded["gate_input"] + self._offsets[phase]}


def with_rounding_flip(
    comparison: Comparison,
    prefix: str,
    names: Collection[str],
    side: Candidate,
    offsets: Callable[[], Offsets | None],
    measure: Measure,
    flipped_standard: Standard = Standard.GOLDEN_FLIPPED,
) -> list[Comparison]:
    """The comparison as it is, or in parts where a rounding flip is shown for a prompt that fails without one.

    Args:
        flipped_standard: of the arrays that a rounding flip may move, without the move.
        prefix, names: of the prompt's measurements.
        offsets: what moves the gate input away from every boundary near it, to the baseline's side.
    """
    family = side.manifest["family"]
    own = [m for m in comparison.measurements if m.probe in names]
    if comparison.standard not in TIGHT or all_hold(replace(comparison, measurements=tuple(own)), family):
        return [comparison]
    gate_offsets = offsets()
    if gate_offsets is None:
        return [comparison]
    moved = measure(side.with_processor(MovedGateInput(side.processor, gate_offsets)))
    if not all_hold(replace(comparison, measurements=tuple(moved)), family):
        return [comparison]
    flipped = [m for m in own if _may_move(m.probe.removeprefix(prefix))]
    again = {m.probe: m for m in moved}
    rest = [again.get(m.probe, m) if m in own else m for m in comparison.measurements if m not in flipped]
    question = f"{comparison.question or prefix} {MOVED}".strip()
    return [
        replace(comparison, measurements=tuple(rest)),
        replace(comparison, standard=flipped_standard, measurements=tuple(flipped), question=question),
        replace(comparison, name="rounding-flip", measurements=tuple(moved), question=question),
    ]


def _may_move(name: str) -> bool:
    """The arrays for which the golden's README gives what a rounding flip moves."""
    return "logits" in name or name.startswith("gates_")


def offsets_to_golden(case: GoldenCase, prefix: str, checkpoint: Checkpoint) -> Offsets | None:
    """Offsets to the side of every boundary on which the golden's weights say it stood."""
    if not checkpoint.spec.decoder.layer_kind.rounded_gates:
        return None
    names = [f"{prefix}{what}_{phase}" for what in ("gates", "gate_input") for phase in PHASES]
    if not all(name in case.outputs for name in names):
        return None
    gates = layer_gates(reference(checkpoint.spec, checkpoint.weights).stage(DECODER), checkpoint.spec)
    weights, given = (
        {phase: case.outputs[f"{prefix}{what}_{phase}"] for phase in PHASES} for what in ("gates", "gate_input")
    )
    return _offsets(gates, given, weights)


def offsets_to_reference(once: AskedOnce, checkpoint: Checkpoint) -> Offsets | None:
    """Offsets to the side of every boundary on which the reference that ``once`` asked stands itself."""
    if not checkpoint.spec.decoder.layer_kind.rounded_gates or not isinstance(once.side.backend, TorchBackend):
        return None
    gates = layer_gates(once.side.backend.stage(DECODER), checkpoint.spec)
    given = {phase: gate_input(once, phase) for phase in PHASES}
    weights = {
        phase: np.stack([[_chosen(gate, given[phase]) for gate in layer.values()] for layer in gates]) for phase in PHASES
    }
    return _offsets(gates, given, weights)


def _chosen(gate: Any, given: np.ndarray) -> np.ndarray:
    """float16 (experts,), the weight at the chosen expert's place, zero elsewhere."""
    shares = gate.shares(torch.from_numpy(given))[0].detach().numpy().astype(np.float16)
    return np.where(np.arange(len(shares)) == shares.argmax(), shares, np.float16(0))


def _offsets(
    gates: Sequence[Mapping[str, Any]], given: Mapping[Phase, np.ndarray], weights: Mapping[Phase, np.ndarray]
) -> Offsets | None:
    """None when no logit is near a boundary, or when boundaries do not explain the weights, (layers, gates, experts)."""
    near_offsets: Offsets = {}
    near: list[Boundary] = []
    for phase in PHASES:
        here: list[Boundary] = []
        for layer, row in zip(gates, weights[phase], strict=True):
            for gate, stored in zip(layer.values(), row, strict=True):
                boundaries = _boundaries(gate, torch.from_numpy(given[phase]), stored)
                if boundaries is None:
                    return None
                here += boundaries
        near_offsets[phase] = _offset(here, given[phase])
        near += here
    return near_offsets if near else None


def _boundaries(gate: Any, given: Tensor, stored: np.ndarray) -> list[Boundary] | None:
    """The logits of one gate near a boundary; None when no choice of their sides gives the golden's weight.

    Args:
        stored: float16 (experts,), the weight at the chosen expert's place, zero elsewhere.
    """
    logits = gate.logits(given)[0].detach()
    rounded = logits.half()
    places = [_other_side(float(value), half) for value, half in zip(logits, rounded, strict=True)]
    options = [[half] if other is None else [half, other[0]] for half, other in zip(rounded, places, strict=True)]
    chosen = int(stored.argmax())
    for sides in product(*options):
        shares = torch.softmax(torch.stack(sides).float(), dim=-1).half()
        if int(shares.argmax()) == chosen and shares[chosen].item() == float(stored[chosen]):
            break
    else:
        return None
    return list(_changes(gate, given, logits, sides, places))


def _other_side(value: float, half: Tensor) -> tuple[Tensor, float] | None:
    """The float16 neighbour on the other side of the boundary nearest to a value, and the boundary, when it is near."""
    towards = torch.tensor(np.inf if value >= half.item() else -np.inf, dtype=torch.float16)
    neighbour = torch.nextafter(half, towards)
    boundary = (half.item() + neighbour.item()) / 2
    return (neighbour, boundary) if abs(value - boundary) <= NOISE * max(1.0, abs(value)) else None


def _changes(gate: Any, given: Tensor, logits: Tensor, sides: Sequence[Tensor], places: Sequence) -> Iterator[Boundary]:
    slopes = torch.func.jacrev(lambda x: gate.logits(x)[0])(given)
    for index, place in enumerate(places):
        if place is not None:
            boundary, value = place[1], float(logits[index])
            beyond = NOISE * max(1.0, abs(value)) * (1 if sides[index].item() > boundary else -1)
            yield Boundary(slopes[index].reshape(-1), boundary + beyond - value)


def _offset(near: Sequence[Boundary], given: np.ndarray) -> np.ndarray:
    """The smallest move of the gate input that changes every near logit as asked."""
    if not near:
        return np.zeros_like(given)
    slopes = torch.stack([boundary.slope for boundary in near]).double()
    changes = torch.tensor([boundary.change for boundary in near], dtype=torch.float64)
    move = torch.linalg.lstsq(slopes, changes[:, None], driver="gelsd").solution
    return move.reshape(given.shape).numpy().astype(np.float32)
