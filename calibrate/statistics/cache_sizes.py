"""How large the numbers of a key/value cache become: the decoder run block by block, its keys and values looked at.

A channel of a key turns with the one half a head away by an angle that grows with the position, so what a channel may become
is the length of the pair, at whatever position the sample had it (`export.quantisation.cache_scales`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from calibrate.samples.data import Prompt
from calibrate.statistics.capture import stream
from export.modules.kernels import CachedAttention, Kernels
from export.quantisation.cache_scales import KEY, VALUE
from export.quantisation.codes import WeightProvider
from runtime_py.preprocess.base import Processor

if TYPE_CHECKING:
    from export.specs import DecoderSpec, ModelSpec


class WatchedAttention(CachedAttention):
    """The attention of one layer, which takes down how large its keys and values become.

    Args:
        name: of the layer's attention.
        sizes: float32 (kv_heads, head_dim) by the name of the scale that follows from it; grown in place.
    """

    def __init__(self, spec: DecoderSpec, name: str, sizes: dict[str, Tensor]) -> None:
        nn.Module.__init__(self)  # without the rotary frequencies, which the shared attention has
        self.spec, self.name, self.sizes = spec, name, sizes

    def kept(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self._grow(KEY, pair_lengths(k))
        self._grow(VALUE, v.abs())
        return k, v

    def _grow(self, half: str, sizes: Tensor) -> None:
        """Take in (batch, kv_heads, tokens, head_dim)."""
        name, largest = f"{self.name}.{half}", sizes.amax(dim=(0, 2))
        before = self.sizes.get(name)
        self.sizes[name] = largest if before is None else torch.maximum(before, largest)


def pair_lengths(k: Tensor) -> Tensor:
    """(..., head_dim) to the length of each channel with the one that turns with it."""
    first, second = k.float().chunk(2, dim=-1)
    return torch.hypot(first, second).repeat(*[1] * (k.dim() - 1), 2)


class WatchingKernels(Kernels):
    """Plain kernels with a `WatchedAttention` a layer.

    Attributes:
        sizes: of all layers.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, Tensor] = {}

    def layer_attention(self, name: str, shared: CachedAttention) -> CachedAttention:
        return WatchedAttention(shared.spec, name, self.sizes)


def cache_sizes(
    spec: ModelSpec, weights: WeightProvider, prompts: Sequence[Prompt], processor: Processor
) -> dict[str, Tensor]:
    """The largest keys and values over all prompts, by the name of the scale: float32 (kv_heads, head_dim).

    Peak memory: one block's weights, and the activations of all prompts between two blocks.
    """
    kernels = WatchingKernels()
    stream(spec, weights, prompts, processor, lambda _: False, lambda *_: None, kernels=kernels)
    return kernels.sizes
