"""The roundings that a package makes on purpose, made by the reference too, so that what is left is a fault.

A package may store matrices in float16, its int8 layers round their input to uint8, and its cache may hold bytes. All are a
thousand times larger than float32 rounding, and would hide a kernel that is wrong by as much; the reference of the
implementation check therefore makes them at the same places. Roundings that can be switched off in a copy of the graph (int8
inputs of MatMulNBits, the float16 cache) are switched off there: see parity_tests.localize.onnx_blocks. The reference
makes them only where a model is moved far by them, to show that it is (parity_tests.check.rounded_inputs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from export.modules.cache_kernels import RoundedCacheAttention
from export.modules.kernels import CachedAttention, Kernels, Linear, Role
from export.quantisation.cache_scales import CacheScales
from parity_tests.reference.roundings import Rounding

if TYPE_CHECKING:
    from export.quantisation.codes import WeightProvider


@dataclass(frozen=True)
class Arithmetic:
    """A package's roundings.

    Attributes:
        inputs: canonical layer name to what the layer's input goes through before it is multiplied.
        half_weights: canonical layer names whose matrices are stored in float16.
        cache: scales of keys and values that are kept in bytes; None where they are kept as they are.
    """

    inputs: Mapping[str, Rounding] = field(default_factory=dict)
    half_weights: frozenset[str] = frozenset()
    cache: CacheScales | None = None


PLAIN = Arithmetic()
"""No roundings but those of the dtype the reference computes in."""


class RoundedLinear(Linear):
    """A plain linear layer whose input goes through a rounding first."""

    def __init__(self, in_features: int, out_features: int, bias: bool, role: Role, rounding: Rounding) -> None:
        super().__init__(in_features, out_features, bias, role)
        self.rounding = rounding

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.rounding(x))


class ArithmeticKernels(Kernels):
    """Plain kernels with a package's roundings."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.arithmetic = arithmetic

    def linear(self, name: str, in_features: int, out_features: int, bias: bool, role: Role) -> nn.Module:
        rounding = self.arithmetic.inputs.get(name)
        if rounding is None:
            return super().linear(name, in_features, out_features, bias, role)
        return RoundedLinear(in_features, out_features, bias, role, rounding)

    def layer_attention(self, name: str, shared: CachedAttention) -> CachedAttention:
        cache = self.arithmetic.cache
        return shared if cache is None else RoundedCacheAttention(shared.spec, cache.of(name))


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
