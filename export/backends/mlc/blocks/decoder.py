"""The Llama-shaped decoder in Relax over TVM's paged key/value cache, from the spec that export.modules builds."""

from __future__ import annotations

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from export.backends.mlc.blocks.linear import Embedding, Layers
from export.backends.mlc.blocks.norms import RMSNorm
from export.specs import DecoderSpec, EmbedSpec


class DecoderAttention(nn.Module):
    """Fused projection; the cache rotates q and k, appends, and attends."""

    def __init__(self, name: str, spec: DecoderSpec, layers: Layers) -> None:
        self.spec = spec
        width = (spec.heads + 2 * spec.kv_heads) * spec.head_dim
        self.qkv = layers.linear(f"{name}.qkv", spec.hidden, width, spec.qkv_bias)
        self.out = layers.linear(f"{name}.out", spec.heads * spec.head_dim, spec.hidden, False)

    def forward(self, x: Tensor, cache: PagedKVCache, layer: int) -> Tensor:
        spec = self.spec
        batch, tokens = x.shape[0], x.shape[1]
        qkv = op.reshape(self.qkv(x), (batch, tokens, spec.heads + 2 * spec.kv_heads, spec.head_dim))
        attended = cache.attention_with_fused_qkv(layer, qkv, spec.heads, sm_scale=spec.head_dim**-0.5)
        return self.out(op.reshape(attended, (batch, tokens, spec.heads * spec.head_dim)))


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, name: str, spec: DecoderSpec, layers: Layers) -> None:
        self.gate_up = layers.linear(f"{name}.gate_up", spec.hidden, 2 * spec.mlp_width, False)
        self.down = layers.linear(f"{name}.down", spec.mlp_width, spec.hidden, False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = op.split(self.gate_up(x), 2, axis=-1)
        return self.down(op.silu(gate) * up)


class DecoderLayer(nn.Module):
    """One pre-norm block."""

    def __init__(self, name: str, spec: DecoderSpec, layers: Layers) -> None:
        self.scale = spec.residual_scale
        self.input_norm = RMSNorm(spec.hidden, spec.norm_eps, layers.dtype)
        self.attention = DecoderAttention(f"{name}.attention", spec, layers)
        self.post_norm = RMSNorm(spec.hidden, spec.norm_eps, layers.dtype)
        self.mlp = GatedMlp(f"{name}.mlp", spec, layers)

    def forward(self, x: Tensor, cache: PagedKVCache, layer: int) -> Tensor:
        x = x + self.scaled(self.attention(self.input_norm(x), cache, layer))
        return x + self.scaled(self.mlp(self.post_norm(x)))

    def scaled(self, branch: Tensor) -> Tensor:
        return branch if self.scale == 1.0 else branch * self.scale


class Decoder(nn.Module):
    """All layers, the final norm and the head; ``hidden_states`` and ``logits`` are its two halves."""

    def __init__(self, spec: DecoderSpec, layers: Layers, prefix: str = "decoder") -> None:
        self.spec = spec
        self.layers = nn.ModuleList([DecoderLayer(f"{prefix}.layers.{i}", spec, layers) for i in range(spec.layers)])
        self.norm = RMSNorm(spec.hidden, spec.norm_eps, layers.dtype)
        if not spec.tied_head:
            self.head = layers.linear(f"{prefix}.head", spec.hidden, spec.vocabulary, False, "float32")

    def hidden_states(self, embeds: Tensor, cache: PagedKVCache) -> Tensor:
        """(batch, tokens, hidden) after the last layer, before the norm."""
        x = embeds
        for index, layer in enumerate(self.layers):
            x = layer(x, cache, index)
        return x

    def logits(self, hidden: Tensor, embedding: Embedding) -> Tensor:
        """float32 (batch, tokens, vocabulary)."""
        x = self.norm(hidden)
        if self.spec.logit_divisor != 1.0:
            x = x / self.spec.logit_divisor
        return embedding.head(x) if self.spec.tied_head else self.head(x)


class TokenEmbedding(nn.Module):
    """The embed_tokens stage: int32 ids (tokens,) to scaled rows (tokens, width)."""

    def __init__(self, spec: EmbedSpec, layers: Layers, prefix: str = "embed_tokens") -> None:
        self.table = layers.embedding(f"{prefix}.table", spec.vocabulary, spec.width, spec.scale)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)
