"""The operations a backend may replace while the same modules are traced.

`Kernels` here is the reference: plain PyTorch. A backend subclasses it to put its own operator into the trace (for ONNX
Runtime MatMulNBits and GroupQueryAttention, for TensorRT blocked DequantizeLinear). Modules never ask which one they got.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.specs import Activation, DecoderSpec


class Role(StrEnum):
    """What a linear layer is for, so that a quantisation plan can tell them apart."""

    DECODER = "decoder"
    HEAD = "head"
    VISION = "vision"
    CONNECTOR = "connector"
    ADAPTER = "adapter"


class Linear(nn.Module):
    """y = x W^T (+ b); ``weight`` is (out_features, in_features)."""

    def __init__(self, in_features: int, out_features: int, bias: bool, role: Role) -> None:
        super().__init__()
        self.role = role
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """Root-mean-square norm; variance in float32, result in the input's dtype, then times ``weight``."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight


class LayerNorm(nn.Module):
    """Layer norm over the last axis with scale and shift."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.width = width
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)


def activate(x: Tensor, kind: Activation) -> Tensor:
    """Apply a non-linearity by its exact published form."""
    if kind is Activation.GELU:
        return F.gelu(x)
    if kind is Activation.GELU_TANH:
        return F.gelu(x, approximate="tanh")
    if kind is Activation.QUICK_GELU:
        return x * torch.sigmoid(1.702 * x)
    return F.silu(x)


class CachedAttention(nn.Module):
    """Causal grouped-query attention over a key/value cache; one instance serves all layers of a decoder.

    The reference keeps the cache as (batch, kv_heads, positions, head_dim) and appends by concatenation. Keys are cached
    after rotation.
    """

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        if spec.rope.stored:
            self.frequencies = nn.Parameter(torch.empty(spec.rope.dim // 2))

    def angles(self, position_ids: Tensor) -> Tensor:
        """float32 (batch, tokens, dim / 2) radians from positions (batch, tokens), or (axes, batch, tokens) for M-RoPE."""
        rope = self.spec.rope
        if rope.stored:
            frequencies = self.frequencies.float()
        else:
            exponents = torch.arange(0, rope.dim, 2, dtype=torch.float32, device=position_ids.device) / rope.dim
            frequencies = 1.0 / (rope.theta**exponents)
        if not rope.sections:
            return position_ids[..., None].float() * frequencies
        parts = frequencies.split(list(rope.sections))
        return torch.cat([position_ids[axis][..., None].float() * part for axis, part in enumerate(parts)], dim=-1)

    def prepare(self, attention_mask: Tensor, position_ids: Tensor) -> tuple[Tensor, ...]:
        """Work shared by all layers, once per call: rotary tables and the causal mask.

        Args:
            attention_mask: int64 (batch, total), ones for cached and new positions.
            position_ids: int64 (batch, tokens), or (axes, batch, tokens) for M-RoPE.
        """
        angles = self.angles(position_ids)
        angles = torch.cat([angles, angles], dim=-1)[:, None]  # (batch, 1, tokens, head_dim)
        total, tokens = attention_mask.shape[1], position_ids.shape[-1]
        index = torch.arange(total, device=attention_mask.device)
        causal = index[None, :] <= index[total - tokens :, None]
        mask = causal[None, None] & attention_mask[:, None, None, :].bool()
        return angles.cos(), angles.sin(), mask

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, past_key: Tensor, past_value: Tensor, shared: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend; q (batch, tokens, heads * head_dim), k and v (batch, tokens, kv_heads * head_dim).

        Returns:
            output like q, and the cache with the new keys and values appended.
        """
        spec = self.spec
        cos, sin, mask = shared
        batch, tokens = q.shape[0], q.shape[1]
        q = rotate(q.view(batch, tokens, spec.heads, spec.head_dim).transpose(1, 2), cos, sin)
        k = rotate(k.view(batch, tokens, spec.kv_heads, spec.head_dim).transpose(1, 2), cos, sin)
        v = v.view(batch, tokens, spec.kv_heads, spec.head_dim).transpose(1, 2)
        k, v = self.kept(k, v)
        k, v = torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)
        group = spec.heads // spec.kv_heads
        wide_k, wide_v = (t.repeat_interleave(group, dim=1) if group > 1 else t for t in (k, v))
        out = F.scaled_dot_product_attention(q, wide_k, wide_v, attn_mask=mask)
        return out.transpose(1, 2).reshape(batch, tokens, spec.heads * spec.head_dim), k, v

    def kept(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What the cache keeps of new keys, rotated, and values, each (batch, kv_heads, tokens, head_dim): all of it."""
        return k, v


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotary in float32: x (batch, heads, tokens, head_dim), tables (batch, 1, tokens, head_dim)."""
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class Kernels:
    """Factory of replaceable operations; the reference implementation.

    ``name`` passed to ``linear`` is the canonical module path, under which a plan looks up the layer's storage.
    """

    def linear(self, name: str, in_features: int, out_features: int, bias: bool, role: Role) -> nn.Module:
        return Linear(in_features, out_features, bias, role)

    def rms_norm(self, width: int, eps: float) -> nn.Module:
        return RMSNorm(width, eps)

    def layer_norm(self, width: int, eps: float) -> nn.Module:
        return LayerNorm(width, eps)

    def cached_attention(self, spec: DecoderSpec) -> CachedAttention:
        return CachedAttention(spec)

    def layer_attention(self, name: str, shared: CachedAttention) -> CachedAttention:
        """The attention of one layer, whose name is ``name`` with its path in the layer; the shared one where none differs.

        One that differs has no ``frequencies``: `CachedAttention.prepare` is asked of the shared one.
        """
        return shared

    def full_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Unmasked attention of (batch, heads, tokens, head_dim) tensors, scale head_dim ** -0.5."""
        return F.scaled_dot_product_attention(q, k, v)

    def embedding(self, name: str, vocabulary: int, width: int) -> nn.Module:
        return Embedding(vocabulary, width)


class Embedding(nn.Module):
    """Rows of ``weight`` (vocabulary, width) by id."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, width))

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, self.weight)
