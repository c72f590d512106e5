"""End-to-end tuning of group scales: the codes stay, the decoder's int4 scales move until its logits are closer.

A method that works layer by layer minimises each layer's own error and knows nothing of how those of layers add up. Once all
layers have codes, their scales are the cheapest thing left to move: one number for 32 to 128 weights, stored anyway, so that
size, format and speed do not change. They follow the gradient of the distance from the full-precision logits at answer
positions. The idea is EfficientQAT's second phase, end-to-end training of quantisation parameters (arXiv 2407.11062);
the loss is ours.

A scale is its first value times exp(change). Every step reads the weights back as the destination's kernel does, with scales
as the file stores them. The loss is the mean of ``log(KL + FLOOR)`` over answer positions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from calibrate.blockwise import PartlyQuantised, wanted_layers
from calibrate.samples.data import Prompt
from calibrate.statistics.capture import answer_calls, answer_logits
from calibrate.statistics.stage_stream import Call
from export.quantisation.codes import Codes, WeightProvider
from export.quantisation.grids import GRIDS, Grid
from export.quantisation.spec import Assignment
from export.quantisation.stored import read_codes
from runtime_py.contracts import DECODER

if TYPE_CHECKING:
    from torch import Tensor

    from export.specs import ModelSpec
    from runtime_py.preprocess.base import Processor

log = logging.getLogger("edgeproof")

LEARNING_RATE = 1e-3
"""Of Adam at the first step, in natural logarithms of a scale; it falls linearly to 0."""

BETAS = (0.9, 0.99)

BATCH = 16
"""Samples of a step; they run one after another, so that the activations of one are in memory."""

FLOOR = 1e-5
"""Nats below which a position counts as matched."""

DIGITS = 6
"""Significant digits of a figure in the record."""


@dataclass(frozen=True)
class TunedScales:
    """What a tuning found.

    Attributes:
        scales: layer to its scales (rows, groups) in the dtype of the file; empty where the first ones were as good.
        record: JSON-able account for the manifest; its figures are over all samples.
    """

    scales: Mapping[str, Tensor]
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Distance:
    """From the full-precision logits, over all positions of all samples: the mean loss, and the mean KL in nats."""

    loss: float
    kl: float


class _Layer:
    """An int4 layer: codes that stay, the logarithm of what its scales are multiplied by, and the weight these make."""

    def __init__(self, codes: Codes, grid: Grid, columns: int) -> None:
        import torch

        self.codes, self.grid, self.columns = codes, grid, columns
        self.change = torch.zeros(codes.scales.shape)
        self.change.grad = torch.zeros_like(self.change)
        self.weight = torch.empty(len(codes.codes), columns).requires_grad_()

    def scales(self) -> Tensor:
        """The changed scales, rounded to the dtype that the file keeps."""
        # a factor exp(change) keeps the sign of a scale, which some grids let be negative
        wide = self.codes.scales.float() * self.change.exp()
        return self.grid.stored_scales(wide).to(self.codes.scales.dtype)

    def read(self) -> None:
        """Make the weight what the kernel reads, without a gradient."""
        import torch

        with torch.no_grad():
            self.weight.copy_(self.grid.dequantise(replace(self.codes, scales=self.scales()))[:, : self.columns])
        self.weight.grad = None

    def descend(self) -> None:
        """Give the change its gradient: that of the weight, summed along each scale."""
        import torch

        assert self.change.grad is not None
        if self.weight.grad is None:  # no sample of the batch came by
            self.change.grad.zero_()
            return
        # a weight is exp(change) times a constant, so that dL/dchange sums weight * dL/dweight over the group, on any grid;
        # rounding of the scale to the file's dtype is passed straight through
        slopes = self.weight.detach() * self.weight.grad
        rows, groups = self.change.shape
        slopes = torch.nn.functional.pad(slopes, (0, self.codes.codes.shape[1] - self.columns))
        torch.sum(slopes.view(rows, groups, -1), dim=2, out=self.change.grad)


class _Student:
    """The decoder with all weights in float32, those of tunable layers with a gradient, and what full precision says.

    Args:
        calls: the decoder's inputs for each sample.
        known: full-precision logits (positions, vocabulary) of each sample.
    """

    def __init__(
        self, spec: ModelSpec, state: PartlyQuantised, names: Sequence[str], calls: Sequence[Call], known: Sequence[Tensor]
    ) -> None:
        import torch

        from export.modules.build import build_stage
        from export.modules.kernels import Kernels

        self.calls, self.known = calls, known
        with torch.device("meta"):
            self.module = build_stage(spec, DECODER, Kernels()).eval()
        self.layers = {name: _layer(state, name) for name in names}
        self.parameters = {
            place: self.layers[layer].weight if layer in self.layers else state.tensor(f"{DECODER}.{place}").float()
            for place, _ in self.module.named_parameters()
            for layer in [f"{DECODER}.{place.removesuffix('.weight')}"]
        }

    def read(self) -> None:
        for layer in self.layers.values():
            layer.read()

    def nats(self, sample: int) -> Tensor:
        """float64 KL (positions,) of one sample's answer from full precision."""
        import torch

        logits = torch.func.functional_call(self.module, self.parameters, (), self.calls[sample])[0][0]
        # float64: the KL of nearly equal distributions is a difference below float32's last bit
        known = self.known[sample].double().log_softmax(-1)
        return (known.exp() * (known - logits.double().log_softmax(-1))).sum(-1).clamp(min=0)

    def distance(self) -> Distance:
        """Over all samples, with the scales as they are stored."""
        import torch

        self.read()
        with torch.no_grad():
            nats = torch.cat([self.nats(sample) for sample in range(len(self.calls))])
        return Distance(float((nats + FLOOR).log().mean()), float(nats.mean()))

    def train(self, steps: int, learning_rate: float) -> None:
        """Move the scales; stops before a step whose loss is not finite."""
        import torch

        layers = list(self.layers.values())
        optimizer = torch.optim.Adam([layer.change for layer in layers], lr=learning_rate, betas=BETAS)
        generator, order = torch.Generator().manual_seed(0), list[int]()
        for step in range(steps):
            if len(order) < min(BATCH, len(self.calls)):
                order = torch.randperm(len(self.calls), generator=generator).tolist()
            batch, order = order[:BATCH], order[BATCH:]
            loss = self._slopes(batch)
            if not math.isfinite(loss):
                log.warning("scale tuning: the loss of step %d is not finite; it stops there", step + 1)
                return
            for layer in layers:
                layer.descend()
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
            optimizer.step()
            if (step + 1) % 10 == 0:
                log.debug("scale tuning: step %d of %d, loss %.4f", step + 1, steps, loss)

    def _slopes(self, batch: Sequence[int]) -> float:
        """The loss of a batch, its gradient summed up in the layers' weights, one sample's activations at a time."""
        self.read()
        positions, total = sum(len(self.known[sample]) for sample in batch), 0.0
        for sample in batch:
            # the logarithm keeps the few unsure positions, which make a mean KL, from deciding the direction alone
            loss = (self.nats(sample) + FLOOR).log().sum() / positions
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total


def tuned_scales(
    spec: ModelSpec,
    weights: WeightProvider,
    state: PartlyQuantised,
    prompts: Sequence[Prompt],
    processor: Processor,
    steps: int,
    learning_rate: float = LEARNING_RATE,
) -> TunedScales:
    """Tune the scales of a finished calibration; equal inputs give equal scales with one thread.

    Args:
        weights: the checkpoint's.
        state: every block done; image rows, embeddings and layers in other storages are what it makes of them.
        steps: batches of `BATCH` samples.
    """
    import torch

    names = tunable(spec, state.assignments, state.files)
    known = [logits[0] for logits in answer_logits(spec, weights, prompts, processor)]
    student = _Student(spec, state, names, answer_calls(spec, state, prompts, processor), known)
    before = student.distance()
    student.train(steps, learning_rate)
    after = student.distance()
    scales = {name: layer.scales() for name, layer in student.layers.items()}
    kept = after.loss < before.loss and all(bool(torch.isfinite(scale).all()) for scale in scales.values())
    log.info(
        "scale tuning: %d layers, %d steps; mean KL %.4g nats before, %.4g after; %s", len(names), steps, before.kl,
        after.kl, "kept" if kept else "no gain, not kept",
    )  # fmt: skip
    record = {
        "steps": steps,
        "learning_rate": learning_rate,
        "samples": len(prompts),
        "positions": sum(prompt.answer + 1 for prompt in prompts),
        "loss": {"before": _figure(before.loss), "after": _figure(after.loss)},
        "kl": {"before": _figure(before.kl), "after": _figure(after.kl)},
        "kept": kept,
        "layers": names,
    }
    return TunedScales(scales if kept else {}, record)


def tunable(spec: ModelSpec, assignments: Mapping[str, Assignment], chosen: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """The decoder's int4 layers with codes of their own. Not a head that is the embedding: some packages store it once."""
    head = f"{DECODER}.head" if spec.decoder.tied_head else ""
    return [
        name for name in wanted_layers(assignments) if name in chosen and name.startswith(f"{DECODER}.") and name != head
    ]


def _layer(state: PartlyQuantised, name: str) -> _Layer:
    assignment = state.assignments[name]
    grid = GRIDS[assignment.grid]
    rows = state.shape(f"{name}.weight")[0]
    return _Layer(read_codes(state.files[name], name, grid, 0, rows), grid, assignment.layer.columns)


def _figure(value: float) -> float | None:
    """What a record says of a figure; none of one that is not finite, which JSON has not."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
