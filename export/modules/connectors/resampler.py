"""The perceiver resampler of MiniCPM-V and OmniLMM: one cross-attention from learned queries.

    K0  = ln_kv(kv_proj(vision))
    out = out_proj(softmax(q (Wk (K0 + key_positions))^T / sqrt(128)) (Wv K0))      q is stored projected
    y   = ln_post(out) @ proj

The stored query is already normalised, given its position and projected (all constants), so the graph starts at the
keys. Source: OpenBMB/MiniCPM-V, omnilmm/model/resampler.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.modules.connectors.specs import ResamplerSpec
from export.modules.kernels import Kernels, Role


class Resampler(nn.Module):
    """The connector stage: vision_features (images, tokens, vision_width) to image_features (images, queries, width)."""

    def __init__(self, spec: ResamplerSpec, kernels: Kernels, prefix: str = "connector") -> None:
        super().__init__()
        self.spec, self.kernels = spec, kernels
        width = spec.width

        def linear(name: str, inputs: int, bias: bool) -> nn.Module:
            return kernels.linear(f"{prefix}.{name}", inputs, width, bias, Role.CONNECTOR)

        self.query = nn.Parameter(torch.empty(spec.queries, width))
        if spec.fixed_positions is not None:
            self.key_positions = nn.Parameter(torch.empty(spec.fixed_positions, width))
        self.kv_proj = linear("kv_proj", spec.vision_width, False) if spec.project_vision else None
        self.ln_kv = kernels.layer_norm(width, spec.norm_eps)
        self.key = linear("key", width, True)
        self.value = linear("value", width, True)
        self.out = linear("out", width, True)
        self.ln_post = kernels.layer_norm(width, spec.norm_eps)
        self.proj = linear("proj", width, False)

    def forward(self, vision_features: Tensor, key_positions: Tensor | None = None) -> Tensor:
        spec = self.spec
        images, head_dim = vision_features.shape[0], spec.width // spec.heads
        positions = self.key_positions if key_positions is None else key_positions
        x = vision_features if self.kv_proj is None else self.kv_proj(vision_features)
        x = self.ln_kv(x)

        def split(t: Tensor) -> Tensor:
            return t.view(t.shape[0], -1, spec.heads, head_dim).transpose(1, 2)

        query = split(self.query[None]).expand(images, -1, -1, -1)
        key, value = split(self.key(x + positions.to(x.dtype))), split(self.value(x))
        attended = self.kernels.full_attention(query, key, value)
        out = self.out(attended.transpose(1, 2).reshape(images, spec.queries, spec.width))
        return self.proj(self.ln_post(out))
