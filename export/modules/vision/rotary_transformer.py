"""The Qwen2-VL tower: flattened patches, 2-D rotary positions, pre-norm blocks, no final norm.

Source: transformers 4.45, models/qwen2_vl/modeling_qwen2_vl.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.modules.kernels import Kernels, Role, rotate
from export.modules.vision.specs import RotaryVisionSpec
from export.modules.vision.transformer import VisionMlp


class RotaryVisionAttention(nn.Module):
    """Full attention within each image or temporal slice, rotary on queries and keys."""

    def __init__(self, name: str, spec: RotaryVisionSpec, kernels: Kernels) -> None:
        super().__init__()
        self.spec, self.kernels = spec, kernels
        self.qkv = kernels.linear(f"{name}.qkv", spec.width, 3 * spec.width, True, Role.VISION)
        self.out = kernels.linear(f"{name}.out", spec.width, spec.width, True, Role.VISION)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.spec.heads, self.spec.head_dim).permute(2, 0, 3, 1, 4)
        attended = self.kernels.full_attention(rotate(qkv[0], cos, sin), rotate(qkv[1], cos, sin), qkv[2])
        return self.out(attended.transpose(1, 2).reshape(batch, tokens, width))


class RotaryVisionBlock(nn.Module):
    """Pre-norm attention and MLP with residuals."""

    def __init__(self, name: str, spec: RotaryVisionSpec, kernels: Kernels) -> None:
        super().__init__()
        self.norm1 = kernels.layer_norm(spec.width, spec.norm_eps)
        self.attention = RotaryVisionAttention(f"{name}.attention", spec, kernels)
        self.norm2 = kernels.layer_norm(spec.width, spec.norm_eps)
        self.mlp = VisionMlp(f"{name}.mlp", spec, kernels)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class RotaryVisionTransformer(nn.Module):
    """The vision encoder stage over patches that arrive in merge order."""

    def __init__(self, spec: RotaryVisionSpec, kernels: Kernels, prefix: str = "vision_encoder") -> None:
        super().__init__()
        self.patch = kernels.linear(f"{prefix}.patch", spec.patch_values, spec.width, False, Role.VISION)
        self.blocks = nn.ModuleList(RotaryVisionBlock(f"{prefix}.blocks.{i}", spec, kernels) for i in range(spec.layers))

    def forward(self, pixel_values: Tensor, rotary_angles: Tensor) -> Tensor:
        """Run the tower.

        Args:
            pixel_values: (slices, patches, patch_values); attention stays within a slice.
            rotary_angles: float32 (patches, head_dim / 2), row angles then column angles, in radians.
        """
        angles = torch.cat([rotary_angles, rotary_angles], dim=-1)[None, None].float()
        cos, sin = angles.cos(), angles.sin()
        x = self.patch(pixel_values)
        for block in self.blocks:
            x = block(x, cos, sin)
        return x
