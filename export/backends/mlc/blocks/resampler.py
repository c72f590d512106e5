"""The resampler connector in Relax, from the spec that export.modules.connectors.resampler builds in PyTorch."""

from __future__ import annotations

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from export.backends.mlc.blocks.attention import full_attention
from export.backends.mlc.blocks.linear import Layers
from export.backends.mlc.blocks.norms import LayerNorm
from export.modules.connectors.specs import ResamplerSpec


class Resampler(nn.Module):
    """features (1, tokens, vision_width) to (1, queries, width)."""

    def __init__(self, spec: ResamplerSpec, layers: Layers, prefix: str = "connector") -> None:
        self.spec, self.dtype = spec, layers.dtype
        width = spec.width
        self.query = nn.Parameter((spec.queries, width), layers.dtype)
        if spec.fixed_positions is not None:
            self.key_positions = nn.Parameter((spec.fixed_positions, width), layers.dtype)
        self.kv_proj = layers.linear(f"{prefix}.kv_proj", spec.vision_width, width, False) if spec.project_vision else None
        self.ln_kv = LayerNorm(width, spec.norm_eps, layers.dtype)
        self.key = layers.linear(f"{prefix}.key", width, width, True)
        self.value = layers.linear(f"{prefix}.value", width, width, True)
        self.out = layers.linear(f"{prefix}.out", width, width, True)
        self.ln_post = LayerNorm(width, spec.norm_eps, layers.dtype)
        self.proj = layers.linear(f"{prefix}.proj", width, width, False)

    def forward(self, features: Tensor, sides: dict[str, Tensor]) -> Tensor:
        """Run the connector; ``sides`` holds ``key_positions`` (tokens, width) when the spec takes them as input."""
        positions = sides["key_positions"] if self.spec.fixed_positions is None else self.key_positions
        x = features if self.kv_proj is None else self.kv_proj(features)
        x = self.ln_kv(x)
        query = op.reshape(self.query, (1, self.spec.queries, self.spec.width))
        key = self.key(x + positions.astype(self.dtype))
        attended = full_attention(query, key, self.value(x), self.spec.heads)
        return self.proj(self.ln_post(self.out(attended)))
