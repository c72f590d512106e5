"""How samples pass a block: whether they are looked at, how much of a pass is needed, and in what the products are.

A block whose codes are chosen here is passed twice: once with its weights as they were, for the moments of its layers, and
once with the weights that its codes stand for, for what comes after. What the first pass gives is then of no use, and
neither is the product of the layer that sees its inputs last. A block whose codes an earlier run chose is passed once.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime_py.backends.processor import instructions
from runtime_py.errors import MachineError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from export.modules.kernels import Linear
    from export.specs import ModelSpec

HALF_FROM = 100_000_000
"""Parameters from which products are in bfloat16 where the processor has them: smaller models are quick as they are."""


BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})
"""Instructions that multiply bfloat16, in Linux's words; any of them will do."""


@dataclass(frozen=True)
class Passes:
    """What a stream of samples may leave out.

    Attributes:
        settled: called with a block's name and its wanted layers before samples reach it; true where an earlier run chose
            their codes, so that nothing has to be seen, and the weights have changed already.
        discarded: every visit changes the weights, so that what a block gives before its visit is never looked at.
        half: products of linear layers in bfloat16, sums in float32, on weights rounded to bfloat16.
    """

    settled: Callable[[str, Sequence[str]], bool] = lambda block, layers: False
    discarded: bool = False
    half: bool = False


PLAIN = Passes()
"""Every block is looked at and passed whole, in float32."""


def large(spec: ModelSpec) -> bool:
    """Whether a model is large enough for bfloat16, so that the processor decides in what its samples pass."""
    from export.modules.build import parameter_count

    return parameter_count(spec) >= HALF_FROM


def has_bfloat16() -> bool:
    """Whether the processor has products of bfloat16 (AVX-512 BF16, AMX), which run at twice float32's rate or more."""
    return bool(BFLOAT16 & instructions())


def products() -> str:
    """In what samples pass a `large` model on this processor, with the instructions, by which last bits differ too."""
    return f"bfloat16 ({', '.join(sorted(BFLOAT16 & instructions()))})" if has_bfloat16() else "float32"


def require_same(asked: str) -> None:
    """Refuse to pass samples otherwise than the machine that asks.

    Args:
        asked: its `products`.

    Raises:
        MachineError: this processor's are others.
    """
    here = products()
    if here != asked:
        raise MachineError(
            f"{platform.node()} would pass samples of a calibration in other numbers than the machine that asks",
            f"{asked}, found {here}",
            f"ask machines with the same of {', '.join(sorted(BFLOAT16))} in /proc/cpuinfo, or leave --ray out",
        )


def in_half(layer: Linear) -> Callable[[Tensor], Tensor]:
    """The forward pass of a layer that holds its matrix in bfloat16: the product in it, the rest in the input's dtype."""
    import torch
    from torch.nn import functional as F

    def forward(x: Tensor) -> Tensor:
        product = F.linear(x.to(torch.bfloat16), layer.weight).to(x.dtype)
        return product if layer.bias is None else product.add_(layer.bias)

    return forward


def stored_as(owner: nn.Module, leaf: str, half: bool) -> torch.dtype:
    """In what a parameter is held while samples pass."""
    import torch

    from export.modules.kernels import Linear

    return torch.bfloat16 if half and leaf == "weight" and isinstance(owner, Linear) else torch.float32


class Seen(Exception):
    """Leaves a forward pass when every watched layer has got its input."""


class Enough:
    """Counts the layers that get their input in one call, and leaves later calls after as many.

    The first call runs to its end: it shows how many layers a call has. Every call of a stage runs the same layers.
    """

    def __init__(self) -> None:
        self.calls, self.wanted, self.count = 0, 0, 0

    def begin(self) -> None:
        """A call begins."""
        self.calls, self.count = self.calls + 1, 0

    def seen(self) -> None:
        """A watched layer has got its input."""
        self.count += 1
        if self.calls == 1:
            self.wanted = self.count
        elif self.count == self.wanted:
            raise Seen
