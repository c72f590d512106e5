"""Plain attention whose key/value cache is looked at, or goes through bytes: what scales are chosen by, and what they do."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from export.modules.kernels import CachedAttention, Kernels
from export.quantisation.cache_scales import KEY, STEPS, VALUE, rounded
from export.specs import DecoderSpec


class LayerAttention(CachedAttention):
    """The attention of one layer; the rotary frequencies are those of the shared one."""

    def __init__(self, spec: DecoderSpec) -> None:
        nn.Module.__init__(self)
        self.spec = spec


class RoundedCacheAttention(LayerAttention):
    """New keys and values go through bytes before anything attends to them.

    Args:
        scales: float32 (kv_heads, head_dim), of keys and of values.

    Attributes:
        seen: positions so far.
        halved: int64 (2, kv_heads, head_dim), at how many of them a number of keys, of values was cut to less than its half.
    """

    def __init__(self, spec: DecoderSpec, scales: tuple[Tensor, Tensor]) -> None:
        super().__init__(spec)
        self.scales, self.seen = scales, 0
        self.halved = np.zeros((2, spec.kv_heads, spec.head_dim), np.int64)

    def kept(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        kept = [rounded(x, scale.to(x.device)) for x, scale in zip((k, v), self.scales, strict=True)]
        self.seen += k.shape[0] * k.shape[2]
        for half, (x, scale) in enumerate(zip((k, v), self.scales, strict=True)):
            larger = x.detach().abs() > 2 * STEPS * scale.to(x.device)[:, None]
            self.halved[half] += larger.sum(dim=(0, 2)).cpu().numpy()
        return kept[0], kept[1]


class WatchedAttention(LayerAttention):
    """Takes down how large keys and values become.

    Args:
        name: of the layer's attention.
        sizes: float32 (kv_heads, head_dim) by the name of the scale that follows from it; grown in place.
    """

    def __init__(self, spec: DecoderSpec, name: str, sizes: dict[str, Tensor]) -> None:
        super().__init__(spec)
        self.name, self.sizes = name, sizes

    def kept(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self._grow(KEY, pair_lengths(k))
        self._grow(VALUE, v.abs())
        return k, v

    def _grow(self, half: str, sizes: Tensor) -> None:
        """Take in (batch, kv_heads, tokens, head_dim)."""
        name, largest = f"{self.name}.{half}", sizes.detach().float().amax(dim=(0, 2))
        before = self.sizes.get(name)
        self.sizes[name] = largest if before is None else torch.maximum(before, largest)


class WatchingKernels(Kernels):
    """Plain kernels with a `WatchedAttention` a layer.

    Attributes:
        sizes: of all layers.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, Tensor] = {}

    def layer_attention(self, name: str, shared: CachedAttention) -> CachedAttention:
        return WatchedAttention(shared.spec, name, self.sizes)

    def forget(self, block: str) -> None:
        """Drop the sizes of a block, by its canonical name."""
        for name in [name for name in self.sizes if name.startswith(f"{block}.")]:
            del self.sizes[name]


def pair_lengths(k: Tensor) -> Tensor:
    """(..., head_dim) to the length of each channel with the one half a head away, which turns with it."""
    first, second = k.float().chunk(2, dim=-1)
    return torch.cat([torch.hypot(first, second)] * 2, dim=-1)
