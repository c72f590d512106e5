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

from export.modules.kernels import CachedAttention, Kernels, Role
from export.specs import DecoderSpec

Cache = tuple[Tensor, Tensor]


class Routed(nn.Module):
    """A module whose weights depend on the row or the request: called as ``module(x, routing)``."""


Routing = tuple[Tensor, ...]


def route(module: nn.Module, x: Tensor, routing: Routing | None) -> Tensor:
    """Call a projection, with the routing if it wants one."""
    return module(x, routing) if isinstance(module, Routed) else module(x)


class LayerParts:
    """Builds the parts of a layer that an adapter replaces; this one builds the plain ones."""

    def __init__(self, spec: DecoderSpec, kernels: Kernels) -> None:
        self.spec, self.kernels = spec, kernels
        self.query_width = spec.heads * spec.head_dim
        self.qkv_width = self.query_width + 2 * spec.kv_heads * spec.head_dim

    def qkv(self, name: str) -> nn.Module:
        return self.kernels.linear(name, self.spec.hidden, self.qkv_width, self.spec.qkv_bias, Role.DECODER)

    def out(self, name: str) -> nn.Module:
        return self.kernels.linear(name, self.query_width, self.spec.hidden, False, Role.DECODER)

    def mlp(self, name: str) -> nn.Module:
        return GatedMlp(name, self.spec, self.kernels)

    def gates(self, name: str) -> nn.Module | None:
        """What turns the decoder's routing input into the layer's routing, if layers differ."""
        return None


class DecoderAttention(nn.Module):
    """Projections around the cached attention kernel."""

    attend: CachedAttention

    def __init__(self, name: str, spec: DecoderSpec, parts: LayerParts, attend: CachedAttention) -> None:
        super().__init__()
        self.sizes = [spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.kv_heads * spec.head_dim]
        self.qkv = parts.qkv(f"{name}.qkv")
        self.out = parts.out(f"{name}.out")
        own = parts.kernels.layer_attention(f"{name}.attend", attend)
        if own is not attend:
            self.attend = own
        else:  # the decoder owns the kernel that all layers share; registered here too, its parameters would have many names
            object.__setattr__(self, "attend", attend)

    def forward(self, x: Tensor, past: Cache, shared: tuple[Tensor, ...], routing: Routing | None) -> tuple[Tensor, Cache]:
        q, k, v = route(self.qkv, x, routing).split(self.sizes, dim=-1)
        attended, key, value = self.attend(q, k, v, past[0], past[1], shared)
        return route(self.out, attended, routing), (key, value)


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

    def __init__(self, name: str, spec: DecoderSpec, kernels: Kernels, parts: LayerParts, attend: CachedAttention) -> None:
        super().__init__()
        self.scale = spec.residual_scale
        self.gates = parts.gates(f"{name}.gates")
        self.input_norm = kernels.rms_norm(spec.hidden, spec.norm_eps)
        self.attention = DecoderAttention(f"{name}.attention", spec, parts, attend)
        self.post_norm = kernels.rms_norm(spec.hidden, spec.norm_eps)
        self.mlp = parts.mlp(f"{name}.mlp")

    def forward(
        self, x: Tensor, past: Cache, shared: tuple[Tensor, ...], routing: Routing | None = None
    ) -> tuple[Tensor, Cache]:
        if self.gates is not None and routing is not None:
            routing = self.gates(*routing)
        branch, present = self.attention(self.input_norm(x), past, shared, routing)
        x = x + self.scaled(branch)
        return x + self.scaled(route(self.mlp, self.post_norm(x), routing)), present

    def scaled(self, branch: Tensor) -> Tensor:
        return branch if self.scale == 1.0 else branch * self.scale


class DecoderLayers(nn.Module):
    """Layers, norm and head of a decoder stage; a stage of its own inputs derives from it and says what it routes by.

    Attributes:
        attend: the cached attention that every layer shares.
    """

    parts: type[LayerParts] = LayerParts

    def __init__(self, spec: DecoderSpec, kernels: Kernels, prefix: str = "decoder") -> None:
        super().__init__()
        self.spec = spec
        self.attend = kernels.cached_attention(spec)
        parts = self.parts(spec, kernels)
        self.layers = nn.ModuleList(
            DecoderLayer(f"{prefix}.layers.{i}", spec, kernels, parts, self.attend) for i in range(spec.layers)
        )
        self.norm = kernels.rms_norm(spec.hidden, spec.norm_eps)
        self.head = kernels.linear(f"{prefix}.head", spec.hidden, spec.vocabulary, False, Role.HEAD)

    def run(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        logit_positions: Tensor,
        past_key_values: Sequence[Cache],
        routing: Routing | None,
    ) -> tuple[Tensor, list[Cache]]:
        """`Decoder.forward`, with the routing that adapted decoders make from their own inputs."""
        shared = self.attend.prepare(attention_mask, position_ids)
        x, present = inputs_embeds, []
        for layer, past in zip(self.layers, past_key_values, strict=True):
            x, cache = layer(x, past, shared, routing)
            present.append(cache)
        x = self.norm(x[:, logit_positions])
        if self.spec.logit_divisor != 1.0:
            x = x / self.spec.logit_divisor
        return self.head(x).float(), present


class Decoder(DecoderLayers):
    """The decoder stage; prefill and decode are the same graph with other token counts."""

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
        return self.run(inputs_embeds, attention_mask, position_ids, logit_positions, past_key_values, None)


class TokenEmbedding(nn.Module):
    """The embed_tokens stage: ids (batch, tokens) to scaled rows (batch, tokens, width)."""

    def __init__(self, vocabulary: int, width: int, scale: float, kernels: Kernels, prefix: str = "embed_tokens") -> None:
        super().__init__()
        self.scale = scale
        self.table = kernels.embedding(f"{prefix}.table", vocabulary, width)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids)
        return x if self.scale == 1.0 else x * self.scale
