"""Vision transformers in Relax, from the specs that export.modules.vision builds in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from export.backends.mlc.blocks.attention import packed_attention
from export.backends.mlc.blocks.linear import Layers, multiply
from export.backends.mlc.blocks.norms import LayerNorm
from export.modules.vision.specs import NormPlacement, PositionKind, RotaryVisionSpec, VisionSpec
from export.specs import Activation, ImageSpec

QUICK = 1.702
"""Of x * sigmoid(1.702 x), CLIP's stand-in for GELU (openai/CLIP, clip/model.py)."""


def activate(x: Tensor, kind: Activation) -> Tensor:
    """A non-linearity by its exact published form."""
    if kind is Activation.GELU:
        return _gelu(x)
    if kind is Activation.GELU_TANH:
        return op.gelu(x, approximate="tanh")
    if kind is Activation.QUICK_GELU:
        return x * op.sigmoid(x * QUICK)
    return op.silu(x)


def _gelu(x: Tensor) -> Tensor:
    """Exact GELU, in float32."""

    def compute(x: te.Tensor) -> te.Tensor:
        def value(*at: tirx.Var) -> tirx.Expr:
            wide = x[at].astype("float32")
            return (wide * (tirx.erf(wide * tirx.const(0.5**0.5, "float32")) + 1.0) * 0.5).astype(x.dtype)

        return te.compute(x.shape, value, name="gelu")

    return op.tensor_expr_op(compute, "gelu", [x])


class VisionAttention(nn.Module):
    """Self-attention over all patches, one fused projection (rows q | k | v); ``most`` tokens where a grid is open."""

    def __init__(self, name: str, spec: VisionSpec, layers: Layers, most: int) -> None:
        self.spec, self.most = spec, most
        self.qkv = layers.linear(f"{name}.qkv", spec.width, 3 * spec.width, True)
        self.out = layers.linear(f"{name}.out", spec.width, spec.width, True)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(packed_attention(self.qkv(x), self.spec.heads, self.most))


class VisionMlp(nn.Module):
    """fc2(activation(fc1(x)))."""

    def __init__(self, name: str, spec: VisionSpec | RotaryVisionSpec, layers: Layers) -> None:
        self.activation = spec.activation
        self.fc1 = layers.linear(f"{name}.fc1", spec.width, spec.mlp_width, True)
        self.fc2 = layers.linear(f"{name}.fc2", spec.mlp_width, spec.width, True)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(activate(self.fc1(x), self.activation))


class VisionBlock(nn.Module):
    """Attention and MLP with residuals; the norm stands before the branch or on its output."""

    def __init__(self, name: str, spec: VisionSpec, layers: Layers, most: int) -> None:
        self.before = spec.norm_placement is NormPlacement.PRE
        self.norm1 = LayerNorm(spec.width, spec.norm_eps, layers.dtype)
        self.attention = VisionAttention(f"{name}.attention", spec, layers, most)
        self.norm2 = LayerNorm(spec.width, spec.norm_eps, layers.dtype)
        self.mlp = VisionMlp(f"{name}.mlp", spec, layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            x = x + self.attention(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = x + self.norm1(self.attention(x))
        return x + self.norm2(self.mlp(x))


class PatchEmbedding(nn.Module):
    """Non-overlapping patches through one linear map: patches (1, tokens, 3 * patch * patch) to (1, tokens, width)."""

    def __init__(self, spec: VisionSpec, dtype: str) -> None:
        self.spec, self.dtype = spec, dtype
        self.weight = nn.Parameter((spec.width, 3, spec.patch_size, spec.patch_size), dtype)
        self.bias = nn.Parameter((spec.width,), dtype) if spec.patch_bias else None

    def forward(self, patches: Tensor) -> Tensor:
        shape = (self.spec.width, 3 * self.spec.patch_size**2)
        return multiply(patches, [op.reshape(self.weight, shape)], shape, self.bias, self.dtype)


Statistics = tuple[Sequence[float], Sequence[float]]
"""Mean and deviation by channel."""


def normalised(value: tirx.Expr, channel: tirx.Expr, statistics: Statistics, dtype: str) -> tirx.Expr:
    """(value / 255 - mean) / deviation of one uint8 channel value, in float32."""
    mean, deviation = (_by_channel(channel, numbers) for numbers in statistics)
    return ((value.astype("float32") / tirx.const(255.0, "float32") - mean) / deviation).astype(dtype)


def _by_channel(channel: tirx.Expr, numbers: Sequence[float]) -> tirx.Expr:
    first, second, third = (tirx.const(float(number), "float32") for number in numbers)
    return tirx.Select(channel == 0, first, tirx.Select(channel == 1, second, third))


def cut_patches(
    image: Tensor, rows: tirx.Expr | int, columns: tirx.Expr | int, patch: int, dtype: str, statistics: Statistics
) -> Tensor:
    """(1, rows * columns, 3 * patch * patch) patches, channel first inside each, of an image in one of two forms.

    Args:
        image: float32 (1, 3, height, width), normalised; or uint8 (1, height, width, 3), then normalised here.
    """
    raw = image.dtype == "uint8"

    def compute(image: te.Tensor) -> te.Tensor:
        def value(_: tirx.Var, token: tirx.Var, at: tirx.Var) -> tirx.Expr:
            channel, inside = at // (patch * patch), at % (patch * patch)
            y = token // columns * patch + inside // patch
            x = token % columns * patch + inside % patch
            if not raw:
                return image[0, channel, y, x].astype(dtype)
            return normalised(image[0, y, x, channel], channel, statistics, dtype)

        return te.compute((1, rows * columns, 3 * patch * patch), value, name="cut_patches")

    return op.tensor_expr_op(compute, "cut_patches", [image])


class VisionTransformer(nn.Module):
    """The tower: patches (1, tokens, 3 * patch * patch) to features (1, tokens, width).

    Args:
        most: patches to plan for where the spec has no grid of its own.
    """

    def __init__(self, spec: VisionSpec, layers: Layers, most: int = 0, prefix: str = "vision_encoder") -> None:
        self.spec, self.dtype = spec, layers.dtype
        self.patch = PatchEmbedding(spec, layers.dtype)
        if spec.class_token:
            self.class_token = nn.Parameter((1, spec.width), layers.dtype)
            self.class_position = nn.Parameter((1, spec.width), layers.dtype)
        tokens = spec.grid[0] * spec.grid[1] if spec.positions is PositionKind.FIXED and spec.grid else spec.native_grid**2
        self.positions = nn.Parameter((tokens, spec.width), layers.dtype)
        self.input_norm = LayerNorm(spec.width, spec.norm_eps, layers.dtype) if spec.input_norm else None
        self.blocks = nn.ModuleList([VisionBlock(f"{prefix}.blocks.{i}", spec, layers, most) for i in range(spec.layers)])
        self.norm = LayerNorm(spec.width, spec.norm_eps, layers.dtype) if spec.final_norm else None

    def resampled(self, row_weights: Tensor, column_weights: Tensor) -> Tensor:
        """(tokens, width) positions for any grid, in float32; the matrices are float32 (rows or columns, native_grid)."""
        side, width = self.spec.native_grid, self.spec.width
        rows, columns = row_weights.shape[0], column_weights.shape[0]
        table = op.reshape(self.positions.astype("float32"), (side, side * width))
        stretched = op.reshape(op.matmul(row_weights, table), (rows, side, width))
        return op.reshape(op.matmul(column_weights, stretched), (rows * columns, width))

    def cut(self, image: Tensor, rows: tirx.Expr | int, columns: tirx.Expr | int, picture: ImageSpec) -> Tensor:
        """The patches of an image, as `cut_patches` takes it."""
        statistics = picture.mean, picture.deviation
        return cut_patches(image, rows, columns, self.spec.patch_size, self.dtype, statistics)

    def forward(self, patches: Tensor, sides: dict[str, Tensor]) -> Tensor:
        """Run the tower; ``sides`` holds the further inputs of the stage's contract by name."""
        x = self.patch(patches)
        positions = self.positions
        if "row_weights" in sides:
            positions = self.resampled(sides["row_weights"], sides["column_weights"])
        elif "patch_positions" in sides:
            positions = op.take(self.positions, sides["patch_positions"], axis=0)
        x = x + positions.astype(self.dtype)
        if self.spec.class_token:
            first = op.reshape(self.class_token + self.class_position, (1, 1, self.spec.width))
            x = op.concat([first, x], dim=1)
        if self.input_norm is not None:
            x = self.input_norm(x)
        for block in self.blocks:
            x = block(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.spec.class_token and not self.spec.emit_class_token:
            x = op.split(x, [1], axis=1)[1]
        return x
