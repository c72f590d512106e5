"""A Llama-shaped decoder with the scales MiniCPM adds: RMSNorm, rotary, grouped-query attention, SwiGLU.

    x = x + residual_scale * attention(norm(x))
    x = x + residual_scale * mlp(norm(x))
    logits = head(norm(x[logit_positions]) / logit_divisor)

q, k, v are one projection (rows q | k | v), gate and up another (rows gate | up).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from export.modules.kernels import Kernels, Role
from export.specs import DecoderSpec

Cache = tuple[Tensor, Tensor]


class DecoderAttention(nn.Module):
    """Projections around the cached attention kernel."""

    def __init__(self, name: str, spec: DecoderSpec, kernels: Kernels, attend: nn.Module) -> None:
        super().__init__()
        self.sizes = [spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.kv_heads * spec.head_dim]
        self.qkv = kernels.linear(f"{name}.qkv", spec.hidden, sum(self.sizes), spec.qkv_bias, Role.DECODER)
        self.out = kernels.linear(f"{name}.out", self.sizes[0], spec.hidden, False, Role.DECODER)
        self.attend = attend

    def forward(self, x: Tensor, past: Cache, shared: tuple[Tensor, ...]) -> tuple[Tensor, Cache]:
        q, k, v = self.qkv(x).split(self.sizes, dim=-1)
        attended, key, value = self.attend(q, k, v, past[0], past[1], shared)
        return self.out(attended), (key, value)


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, name: str, spec: DecoderSpec, kernels: Kernels) -> None:
        super().__init__()
        self.width = spec.mlp_width
        self.gate_up = kernels.linear(f"{name}.gate_up", spec.hidden, 2 * spec.mlp_width, False, Role.DECODER)
        self.down = kernels.linear(f"{name}.down", spec.mlp_width, spec.hidden, False, Role.DECODER)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).split(self.width, dim=-1)
        return self.down(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    """One pre-norm block."""

    def __init__(self, name: str, spec: DecoderSpec, kernels: Kernels, attend: nn.Module) -> None:
        super().__init__()
        self.scale = spec.residual_scale
        self.input_norm = kernels.rms_norm(spec.hidden, spec.norm_eps)
        self.attention = DecoderAttention(f"{name}.attention", spec, kernels, attend)
        self.post_norm = kernels.rms_norm(spec.hidden, spec.norm_eps)
        self.mlp = GatedMlp(f"{name}.mlp", spec, kernels)

    def forward(self, x: Tensor, past: Cache, shared: tuple[Tensor, ...]) -> tuple[Tensor, Cache]:
        branch, present = self.attention(self.input_norm(x), past, shared)
        x = x + self.scaled(branch)
        return x + self.scaled(self.mlp(self.post_norm(x))), present

    def scaled(self, branch: Tensor) -> Tensor:
        return branch if self.scale == 1.0 else branch * self.scale


class Decoder(nn.Module):
    """The decoder stage; prefill and decode are the same graph with other token counts."""

    def __init__(self, spec: DecoderSpec, kernels: Kernels, prefix: str = "decoder") -> None:
        super().__init__()
        self.spec = spec
        self.attend = kernels.cached_attention(spec)
        self.layers = nn.ModuleList(
            DecoderLayer(f"{prefix}.layers.{i}", spec, kernels, self.attend) for i in range(spec.layers)
        )
        self.norm = kernels.rms_norm(spec.hidden, spec.norm_eps)
        self.head = kernels.linear(f"{prefix}.head", spec.hidden, spec.vocabulary, False, Role.HEAD)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        logit_positions: Tensor,
        past_key_values: Sequence[Cache],
    ) -> tuple[Tensor, list[Cache]]:
        """Run ``tokens`` positions.

        Args:
            inputs_embeds: (batch, tokens, hidden).
            attention_mask: int64 (batch, past + tokens).
            position_ids: int64 (batch, tokens).
            logit_positions: int64 (outputs,), which of the tokens get logits; negative counts from the end.
            past_key_values: per layer (batch, kv_heads, past, head_dim) keys and values.

        Returns:
            float32 logits (batch, outputs, vocabulary) and the grown cache.
        """
        shared = self.attend.prepare(attention_mask, position_ids)
        x, present = inputs_embeds, []
        for layer, past in zip(self.layers, past_key_values, strict=True):
            x, cache = layer(x, past, shared)
            present.append(cache)
        x = self.norm(x[:, logit_positions])
        if self.spec.logit_divisor != 1.0:
            x = x / self.spec.logit_divisor
        return self.head(x).float(), present


class TokenEmbedding(nn.Module):
    """The embed_tokens stage: ids (batch, tokens) to scaled rows (batch, tokens, width)."""

    def __init__(self, vocabulary: int, width: int, scale: float, kernels: Kernels, prefix: str = "embed_tokens") -> None:
        super().__init__()
        self.scale = scale
        self.table = kernels.embedding(f"{prefix}.table", vocabulary, width)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids)
        return x if self.scale == 1.0 else x * self.scale
