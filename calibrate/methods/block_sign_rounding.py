"""Sign rounding of all layers of a block together, against the block's own output.

In the manner of AutoRound (Cheng et al., arXiv 2309.05516; intel/auto-round, algorithms/quantization/sign_round): what the
layers do to each other, and what attention and activations make of it, is part of what is lowered. Offsets and clips start
where sign rounding layer by layer has left them. 200 turns of 8 samples follow, steps shrinking linearly to zero. Every
`LOOK` turns the block's error over all samples is taken; the least is kept, the start and plain rounding among them.

The target is what the block makes of the same inputs in full precision. Unlike the other methods' codes, these depend on the
number of threads in the last bits of a gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from calibrate.methods.base import LayerProblem
from calibrate.methods.clip import searched
from calibrate.methods.sign_rounding import TURNS, SignRounding, Tuning
from calibrate.statistics.block_run import BlockRun
from export.quantisation.codes import Codes

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("edgeproof")

BATCH = 8
"""Samples of a turn."""

LOOK = 40
"""Turns between two looks at the error over all samples."""


class BlockSignRounding(SignRounding):
    """All layers of a block tuned against the block's output; one outside the blocks (the head) is tuned by itself."""

    name: ClassVar[str] = "block-sign-rounding"
    title: ClassVar[str] = "sign rounding of a block's layers together, in the manner of AutoRound"
    longer: ClassVar[bool] = True

    def __init__(self, turns: int = TURNS) -> None:
        super().__init__(turns)

    def tune(self, layers: Mapping[str, LayerProblem], run: BlockRun) -> dict[str, Codes]:
        """Codes by layer, those of the turn with the least block error; plain rounding of all where none is lower."""
        import torch

        plain = {name: layer.grid.quantise(layer.weight) for name, layer in layers.items()}
        tunings = {name: self._warm(layer) for name, layer in layers.items()}
        best = plain
        rounded = least = run.error({name: layer.weight + layer.change(plain[name]) for name, layer in layers.items()})
        generator = torch.Generator().manual_seed(0)
        queue: list[int] = []
        alone = rounded
        for turn in range(self.turns + 1):
            states = {name: tuning.rounded() for name, tuning in tunings.items()}
            weights = {name: tunings[name].weight(*state) for name, state in states.items()}
            if turn % LOOK == 0 or turn == self.turns:
                error = run.error(weights)
                log.debug("turn %d: block error %.3e, plain rounding %.3e", turn, error, rounded)
                alone = error if turn == 0 else alone
                if error < least:
                    least = error
                    best = {name: layers[name].codes(*state) for name, state in states.items()}
            if len(queue) < min(BATCH, len(run.inputs)):
                queue = torch.randperm(len(run.inputs), generator=generator).tolist()
            taken, queue = queue[:BATCH], queue[BATCH:]
            slopes = self._slopes(run, weights, taken)
            for name, tuning in tunings.items():
                tuning.step(slopes[name], *states[name], (1 - turn / self.turns) / self.turns)
        log.info("block error %.3e; layer by layer %.3e, plain rounding %.3e", least, alone, rounded)
        return best

    def _warm(self, layer: LayerProblem) -> Tuning:
        """Tuned by itself."""
        assert layer.moment is not None
        matrix = layer.moment.matrix / max(layer.moment.count, 1)
        tuning = Tuning(layer, searched(layer))
        for turn in range(self.turns):
            codes, now = tuning.rounded()
            slope = (tuning.weight(codes, now) - layer.weight) @ matrix
            tuning.step(slope, codes, now, (1 - turn / self.turns) / self.turns)
        return tuning

    def _slopes(self, run: BlockRun, weights: Mapping[str, Tensor], samples: list[int]) -> dict[str, Tensor]:
        """Gradients of the squared error of some samples' block outputs by the weights."""
        import torch

        with torch.enable_grad():
            held = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
            lost = [run.squares(sample, run.output(sample, held) - run.outputs[sample]) for sample in samples]
            slopes = torch.autograd.grad(torch.stack(lost).sum(), list(held.values()), allow_unused=True)
        return {
            name: torch.zeros_like(weight) if slope is None else slope
            for (name, weight), slope in zip(held.items(), slopes, strict=True)
        }
