"""One block with the inputs that all samples bring it, to be run again with other weights for some of its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class BlockRun:
    """A block as the samples pass it.

    Attributes:
        module: the block, holding the weights that `outputs` were computed with.
        layers: wanted layer (canonical name) to its weight's place in the module.
        inputs: per sample the rows that come in, and the further positional and named arguments.
        outputs: per sample the rows that go out.
        row_weights: per sample how much each row (rows,) counts; None where all count the same.
    """

    module: nn.Module
    layers: Mapping[str, str]
    inputs: Sequence[tuple[Tensor, tuple[Any, ...], Mapping[str, Any]]]
    outputs: Sequence[Tensor]
    row_weights: Sequence[Tensor] | None = None

    def output(self, sample: int, weights: Mapping[str, Tensor]) -> Tensor:
        """What goes out of one sample when some layers have other weights (by canonical name); inside autograd."""
        import torch

        rows, more, named = self.inputs[sample]
        replaced = {self.layers[layer]: weight for layer, weight in weights.items()}
        output = torch.func.functional_call(self.module, replaced, (rows, *more), dict(named))
        return output[0] if isinstance(output, tuple) else output

    def squares(self, sample: int, rows: Tensor) -> Tensor:
        """Sum of squares of rows (1, rows, width) by the weights of one sample's rows."""
        squared = rows.square()
        return (squared if self.row_weights is None else squared * self.row_weights[sample][:, None]).sum()

    def error(self, weights: Mapping[str, Tensor]) -> float:
        """Squared error of the block's output over all samples, as a share of its change to what comes in."""
        import torch

        lost = power = 0.0
        with torch.no_grad():
            for sample, wanted in enumerate(self.outputs):
                lost += float(self.squares(sample, (self.output(sample, weights) - wanted).double()))
                power += float(self.squares(sample, (wanted - self.inputs[sample][0]).double()))
        return lost / power if power else 0.0
