"""The roundings that a package makes on purpose, made by the reference too, so that what is left is a fault.

A package may store matrices in float16, and its int8 layers round their input to uint8. Both are a thousand times larger
than float32 rounding, and would hide a kernel that is wrong by as much; the reference of the implementation check therefore
makes them at the same places. Roundings that can be switched off in a copy of the graph (int8 inputs of MatMulNBits, the
float16 cache) are switched off there instead: see parity_tests.localize.onnx_blocks.

Source: ONNX operator DynamicQuantizeLinear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from export.modules.kernels import Kernels, Linear, Role

if TYPE_CHECKING:
    from export.quantisation.codes import WeightProvider


class InputRounding(StrEnum):
    """What a layer's kernel does to its input before it multiplies."""

    NONE = "none"
    UINT8_CALL = "uint8-call"  # asymmetric uint8, one scale and zero point a call


@dataclass(frozen=True)
class Arithmetic:
    """A package's roundings.

    Attributes:
        inputs: canonical layer name to what happens to the layer's input.
        half_weights: canonical layer names whose matrices are stored in float16.
    """

    inputs: Mapping[str, InputRounding] = field(default_factory=dict)
    half_weights: frozenset[str] = frozenset()

    def rounding(self, layer: str) -> Callable[[Tensor], Tensor] | None:
        """The function that a layer's input goes through, or None."""
        return uint8_call if self.inputs.get(layer) is InputRounding.UINT8_CALL else None


PLAIN = Arithmetic()
"""No roundings but those of the dtype the reference computes in."""


def uint8_call(x: Tensor) -> Tensor:
    """DynamicQuantizeLinear and back: one scale and zero point for the whole tensor, zero representable."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    if scale == 0:
        return x
    zero = torch.round(-low / scale).clamp(0, 255)
    return ((torch.round(x / scale) + zero).clamp(0, 255) - zero) * scale


class RoundedLinear(Linear):
    """A plain linear layer whose input goes through a rounding first."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool, role: Role, rounding: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__(in_features, out_features, bias, role)
        self.rounding = rounding

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.rounding(x))


class ArithmeticKernels(Kernels):
    """Plain kernels with a package's roundings."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.arithmetic = arithmetic

    def linear(self, name: str, in_features: int, out_features: int, bias: bool, role: Role) -> nn.Module:
        rounding = self.arithmetic.rounding(name)
        if rounding is None:
            return super().linear(name, in_features, out_features, bias, role)
        return RoundedLinear(in_features, out_features, bias, role, rounding)


class StoredWeights:
    """A WeightProvider that gives the matrices a package stores in float16 as float16 holds them."""

    def __init__(self, weights: WeightProvider, half_layers: frozenset[str]) -> None:
        self.weights, self.half_layers = weights, half_layers

    def shape(self, target: str) -> tuple[int, ...]:
        return self.weights.shape(target)

    def tensor(self, target: str) -> Tensor:
        return self._stored(target, self.weights.tensor(target))

    def rows(self, target: str, start: int, stop: int | None) -> Tensor:
        return self._stored(target, self.weights.rows(target, start, stop))

    def _stored(self, target: str, value: Tensor) -> Tensor:
        return value.half().float() if target.removesuffix(".weight") in self.half_layers else value
