"""Attention over the key/value cache as ONNX Runtime's operator, with the cache in floats or in bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.onnx.ops import symbolic, symbolic_multi_out

from export.backends.onnx.operator_set import MICROSOFT, OPSET, Attributes, stored
from export.modules.kernels import CachedAttention
from export.specs import DecoderSpec

PER_CHANNEL = "PER_CHANNEL"

HEAD_STEP = 8
"""GroupQueryAttention refuses heads whose width is no multiple of this (measured with ONNX Runtime 1.31)."""


def cached_head_width(head_dim: int) -> int:
    """Width of a head in the key/value cache: ``head_dim``, filled up with zeros to what the operator takes."""
    return -(-head_dim // HEAD_STEP) * HEAD_STEP


class GroupQueryAttention(CachedAttention):
    """Cached attention as GroupQueryAttention, which reads and writes the cache in place when both are one buffer.

    Rotation happens outside: for the first prompt the operator's own rotation takes the first position id and counts on
    from there (measured with ONNX Runtime 1.31), and positions here may be shared, skipped or three-dimensional.

    The scale of the scores lies in the tables that turn the queries, and the operator's own is 1: only then does ONNX
    Runtime multiply a single row with the cache as it lies; with any other scale it first copies every head's keys into the
    form that many rows want (microsoft/onnxruntime, onnxruntime/core/mlas/lib/sgemm.cpp, MlasSgemmOperation: M == 1 and
    alpha == 1; docs/results/many_rows.md has times).
    """

    def __init__(self, spec: DecoderSpec, cache: torch.dtype) -> None:
        super().__init__(spec)
        self.cache = cache

    def prepare(self, attention_mask: Tensor, position_ids: Tensor) -> tuple[Tensor, ...]:
        """Rotary tables (batch, tokens, dim / 2) of queries, of keys, last cache index (batch,), total length (1,), mask."""
        angles = self.angles(position_ids)
        # the operator's seqlens_k is the index of the last position, not how many there are
        last = (attention_mask.sum(dim=1) - 1).to(torch.int32)
        total = symbolic("Shape", [attention_mask], {"start": 1, "end": 2}, dtype=torch.int64, shape=(1,), version=15)
        cos, sin, scale = angles.cos(), angles.sin(), float(self.spec.head_dim**-0.5)
        return cos * scale, sin * scale, cos, sin, last, total.to(torch.int32), attention_mask

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, past_key: Tensor, past_value: Tensor, shared: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        spec = self.spec
        scaled_cos, scaled_sin, cos, sin, last, total, mask = shared
        width = cached_head_width(spec.head_dim)
        rotated = self._rotate(q, scaled_cos, scaled_sin, spec.heads), self._rotate(k, cos, sin, spec.kv_heads)
        wide_q, wide_k, wide_v = (self._widened(t, width) for t in (*rotated, v))
        present = (past_key.shape[0], spec.kv_heads, mask.shape[1], width)
        computed, further, attributes = self._cache_arguments(q.dtype)
        out, key, value = symbolic_multi_out(
            f"{MICROSOFT}::GroupQueryAttention",
            [*(t.to(computed) for t in (wide_q, wide_k, wide_v)), past_key, past_value, last, total, *further],
            {"num_heads": spec.heads, "kv_num_heads": spec.kv_heads, "do_rotary": 0, "scale": 1.0, **attributes},
            dtypes=(computed, self.cache, self.cache),
            shapes=(wide_q.shape, present, present),
            version=1,
        )
        return self._narrowed(out, width).to(q.dtype), key, value

    def _cache_arguments(self, given: torch.dtype) -> tuple[torch.dtype, Sequence[Tensor | None], Attributes]:
        """What the operator computes in, and its further inputs and attributes; ``given`` is the dtype of the queries."""
        return self.cache, (), {}

    def _widened(self, x: Tensor, width: int) -> Tensor:
        """(batch, tokens, heads * head_dim) with zeros behind every head; zeros change neither a product nor a sum."""
        head_dim = self.spec.head_dim
        if width == head_dim:
            return x
        heads = F.pad(x.unflatten(2, (-1, head_dim)), (0, width - head_dim))
        return heads.flatten(2)

    def _narrowed(self, x: Tensor, width: int) -> Tensor:
        """The inverse of `_widened`."""
        head_dim = self.spec.head_dim
        return x if width == head_dim else x.unflatten(2, (-1, width))[..., :head_dim].flatten(2)

    @staticmethod
    def _rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
        attributes: Attributes = {"num_heads": heads, "interleaved": 0}  # a channel turns with the one half a head away
        return symbolic("RotaryEmbedding", (x, cos, sin), attributes, dtype=x.dtype, shape=x.shape, version=OPSET)


class Int8CacheAttention(GroupQueryAttention):
    """The attention of one layer over a cache in bytes, with a scale for every channel of its keys and of its values.

    New keys and values are rounded to bytes before anything attends to them, and attention is computed in float32.
    Initializers: ``key_scale`` and ``value_scale``, float32 (kv_heads, 1, width).
    """

    def __init__(self, spec: DecoderSpec) -> None:
        nn.Module.__init__(self)  # without the rotary frequencies, which the shared attention has
        self.spec, self.cache = spec, torch.int8
        shape = (spec.kv_heads, 1, cached_head_width(spec.head_dim))
        self.key_scale, self.value_scale = (stored(*shape, dtype=torch.float32) for _ in range(2))

    def _cache_arguments(self, given: torch.dtype) -> tuple[torch.dtype, Sequence[Tensor | None], Attributes]:
        attributes: Attributes = {"kv_cache_bit_width": 8, "k_quant_type": PER_CHANNEL, "v_quant_type": PER_CHANNEL}
        # rotary tables, positions, a bias and a sink stand between: none of them
        return given, (*[None] * 5, self.key_scale, self.value_scale), attributes
