"""The Llama-shaped decoder in Relax over TVM's paged key/value cache, from the spec that export.modules builds."""

from __future__ import annotations

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from export.backends.mlc.blocks.layer_parts import LayerParts, Sides, route
from export.backends.mlc.blocks.linear import Embedding, Layers
from export.backends.mlc.blocks.norms import RMSNorm
from export.backends.mlc.blocks.rotary import decoder_angles, rotate_heads
from export.backends.mlc.kind_blocks import block_of
from export.backends.mlc.support import explicit_positions
from export.modules.kind import named_class
from export.specs import DecoderSpec, EmbedSpec


class DecoderAttention(nn.Module):
    """Fused projection; the cache rotates q and k (unless positions are explicit), appends, and attends."""

    def __init__(self, name: str, spec: DecoderSpec, parts: LayerParts) -> None:
        self.spec = spec
        self.qkv = parts.qkv(f"{name}.qkv")
        self.out = parts.out(f"{name}.out")

    def forward(self, x: Tensor, cache: PagedKVCache, layer: int, sides: Sides, angles: Tensor | None) -> Tensor:
        spec = self.spec
        batch, tokens = x.shape[0], x.shape[1]
        qkv = op.reshape(route(self.qkv, x, sides), (batch, tokens, spec.heads + 2 * spec.kv_heads, spec.head_dim))
        if angles is not None:
            qkv = rotate_heads(qkv, angles, spec.heads + spec.kv_heads)
        attended = cache.attention_with_fused_qkv(layer, qkv, spec.heads, sm_scale=spec.head_dim**-0.5)
        return route(self.out, op.reshape(attended, (batch, tokens, spec.heads * spec.head_dim)), sides)


class DecoderLayer(nn.Module):
    """One pre-norm block."""

    def __init__(self, name: str, spec: DecoderSpec, parts: LayerParts) -> None:
        self.scale = spec.residual_scale
        dtype = parts.layers.dtype
        self.gates = parts.gates(f"{name}.gates")
        self.input_norm = RMSNorm(spec.hidden, spec.norm_eps, dtype)
        self.attention = DecoderAttention(f"{name}.attention", spec, parts)
        self.post_norm = RMSNorm(spec.hidden, spec.norm_eps, dtype)
        self.mlp = parts.mlp(f"{name}.mlp")

    def forward(self, x: Tensor, cache: PagedKVCache, layer: int, sides: Sides, angles: Tensor | None) -> Tensor:
        if self.gates is not None and sides:
            sides = self.gates(sides)
        x = x + self.scaled(self.attention(self.input_norm(x), cache, layer, sides, angles))
        return x + self.scaled(route(self.mlp, self.post_norm(x), sides))

    def scaled(self, branch: Tensor) -> Tensor:
        return branch if self.scale == 1.0 else branch * self.scale


class Attend(nn.Module):
    """Holds the stored rotary frequencies, where the checkpoint has them (``decoder.attend.frequencies``)."""

    def __init__(self, spec: DecoderSpec, dtype: str) -> None:
        self.frequencies = nn.Parameter((spec.rope.dim // 2,), dtype)


class Decoder(nn.Module):
    """All layers, the final norm and the head; ``hidden_states`` and ``logits`` are its two halves."""

    def __init__(self, spec: DecoderSpec, layers: Layers, prefix: str = "decoder") -> None:
        self.spec = spec
        if spec.rope.stored:
            self.attend = Attend(spec, layers.dtype)
        parts: LayerParts = named_class(spec.layer_kind, block_of(spec.layer_kind))(spec, layers)
        self.layers = nn.ModuleList([DecoderLayer(f"{prefix}.layers.{i}", spec, parts) for i in range(spec.layers)])
        self.norm = RMSNorm(spec.hidden, spec.norm_eps, layers.dtype)
        if not spec.tied_head:
            self.head = layers.linear(f"{prefix}.head", spec.hidden, spec.vocabulary, False, "float32")

    def hidden_states(self, embeds: Tensor, cache: PagedKVCache, sides: Sides | None = None) -> Tensor:
        """(batch, tokens, hidden) after the last layer, before the norm.

        Args:
            sides: the contract's further decoder inputs by name; without them rows are text at the cache's positions.
        """
        x, given = embeds, sides or {}
        angles = self.angles(embeds, cache, given) if explicit_positions(self.spec) else None
        for index, layer in enumerate(self.layers):
            x = layer(x, cache, index, given, angles)
        return x

    def angles(self, embeds: Tensor, cache: PagedKVCache, sides: Sides) -> Tensor:
        """Rotary angles of the tokens of this call."""
        rope = self.spec.rope
        axes = max(len(rope.sections), 1)
        positions = sides.get("position_ids")
        if positions is None:
            total = embeds.shape[0] * embeds.shape[1]
            own = op.reshape(cache.get_query_positions(total), (1, 1, total))
            positions = op.broadcast_to(own, (axes, 1, total)) if axes > 1 else own
        elif axes == 1:
            positions = op.reshape(positions, (1, 1, positions.shape[1]))
        return decoder_angles(rope, positions, self.attend.frequencies if rope.stored else None)

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
