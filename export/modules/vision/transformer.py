"""A plain vision transformer: patches, positions, blocks, final norm (SigLIP-timm, EVA, CLIP shapes)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.modules.kernels import Kernels, Role, activate
from export.modules.vision.specs import NormPlacement, PositionKind, RotaryVisionSpec, VisionSpec


class VisionAttention(nn.Module):
    """Multi-head self-attention over all patches with one fused projection (rows q | k | v)."""

    def __init__(self, name: str, spec: VisionSpec, kernels: Kernels) -> None:
        super().__init__()
        self.spec, self.kernels = spec, kernels
        self.qkv = kernels.linear(f"{name}.qkv", spec.width, 3 * spec.width, True, Role.VISION)
        self.out = kernels.linear(f"{name}.out", spec.width, spec.width, True, Role.VISION)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.spec.heads, self.spec.head_dim).permute(2, 0, 3, 1, 4)
        attended = self.kernels.full_attention(qkv[0], qkv[1], qkv[2])
        return self.out(attended.transpose(1, 2).reshape(batch, tokens, width))


class VisionMlp(nn.Module):
    """fc2(activation(fc1(x)))."""

    def __init__(self, name: str, spec: VisionSpec | RotaryVisionSpec, kernels: Kernels) -> None:
        super().__init__()
        self.activation = spec.activation
        self.fc1 = kernels.linear(f"{name}.fc1", spec.width, spec.mlp_width, True, Role.VISION)
        self.fc2 = kernels.linear(f"{name}.fc2", spec.mlp_width, spec.width, True, Role.VISION)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(activate(self.fc1(x), self.activation))


class VisionBlock(nn.Module):
    """Attention and MLP with residuals; the norm stands before the branch or on its output."""

    def __init__(self, name: str, spec: VisionSpec, kernels: Kernels) -> None:
        super().__init__()
        self.before = spec.norm_placement is NormPlacement.PRE
        self.norm1 = kernels.layer_norm(spec.width, spec.norm_eps)
        self.attention = VisionAttention(f"{name}.attention", spec, kernels)
        self.norm2 = kernels.layer_norm(spec.width, spec.norm_eps)
        self.mlp = VisionMlp(f"{name}.mlp", spec, kernels)

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            x = x + self.attention(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = x + self.norm1(self.attention(x))
        return x + self.norm2(self.mlp(x))


class VisionTransformer(nn.Module):
    """The vision encoder stage: pixel_values (images, 3, height, width) to vision_features (images, tokens, width)."""

    def __init__(self, spec: VisionSpec, kernels: Kernels, prefix: str = "vision_encoder") -> None:
        super().__init__()
        self.spec = spec
        self.patch = PatchEmbedding(spec)
        tokens = spec.grid[0] * spec.grid[1] if spec.positions is PositionKind.FIXED and spec.grid else spec.native_grid**2
        if spec.class_token:
            self.class_token = nn.Parameter(torch.empty(1, spec.width))
            self.class_position = nn.Parameter(torch.empty(1, spec.width))
        self.positions = nn.Parameter(torch.empty(tokens, spec.width))
        self.input_norm = kernels.layer_norm(spec.width, spec.norm_eps) if spec.input_norm else None
        self.blocks = nn.ModuleList(VisionBlock(f"{prefix}.blocks.{i}", spec, kernels) for i in range(spec.layers))
        self.norm = kernels.layer_norm(spec.width, spec.norm_eps) if spec.final_norm else None

    def resampled(self, row_weights: Tensor, column_weights: Tensor) -> Tensor:
        """(tokens, width) positions R @ table @ C^T; the matrices are (size, native_grid)."""
        side, width = self.spec.native_grid, self.spec.width
        table = self.positions.view(side, side * width)
        rows = (row_weights.to(table.dtype) @ table).view(-1, side, width)
        return torch.matmul(column_weights.to(table.dtype), rows).reshape(-1, width)

    def forward(
        self,
        pixel_values: Tensor,
        row_weights: Tensor | None = None,
        column_weights: Tensor | None = None,
        patch_positions: Tensor | None = None,
    ) -> Tensor:
        """Run the tower.

        Args:
            pixel_values: (images, 3, height, width).
            row_weights, column_weights: for RESAMPLED positions, (rows or columns, native_grid).
            patch_positions: for INDEXED positions, int64 (tokens,) rows of the table.
        """
        positions: Tensor = self.positions
        if row_weights is not None and column_weights is not None:
            positions = self.resampled(row_weights, column_weights)
        elif patch_positions is not None:
            positions = positions[patch_positions]
        x = self.patch(pixel_values) + positions
        if self.spec.class_token:
            first = (self.class_token + self.class_position).expand(x.shape[0], 1, -1)
            x = torch.cat([first, x], dim=1)
        if self.input_norm is not None:
            x = self.input_norm(x)
        for block in self.blocks:
            x = block(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.spec.emit_class_token or not self.spec.class_token else x[:, 1:]


class PatchEmbedding(nn.Module):
    """Non-overlapping patches through one linear map, flattened row-major: (images, rows * columns, width)."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(spec.width, 3, spec.patch_size, spec.patch_size))
        self.bias = nn.Parameter(torch.empty(spec.width)) if spec.patch_bias else None

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = F.conv2d(pixel_values.to(self.weight.dtype), self.weight, self.bias, stride=self.spec.patch_size)
        return x.flatten(2).transpose(1, 2)
