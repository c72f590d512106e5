"""The Qwen2-VL tower in Relax, from the spec that export.modules.vision.rotary_transformer builds in PyTorch."""

from __future__ import annotations

from tvm import te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from export.backends.mlc.blocks.attention import packed_attention
from export.backends.mlc.blocks.linear import Layers
from export.backends.mlc.blocks.norms import LayerNorm
from export.backends.mlc.blocks.rotary import rotate_heads
from export.backends.mlc.blocks.vision import Statistics, VisionMlp, normalised
from export.modules.vision.specs import RotaryVisionSpec
from export.specs import ImageSpec

CHANNELS = 3


class RotaryVisionBlock(nn.Module):
    """Pre-norm attention with rotary queries and keys, and MLP."""

    def __init__(self, name: str, spec: RotaryVisionSpec, layers: Layers, most: int) -> None:
        self.spec = spec
        self.norm1 = LayerNorm(spec.width, spec.norm_eps, layers.dtype)
        self.attention = RotaryVisionAttention(f"{name}.attention", spec, layers, most)
        self.norm2 = LayerNorm(spec.width, spec.norm_eps, layers.dtype)
        self.mlp = VisionMlp(f"{name}.mlp", spec, layers)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), angles)
        return x + self.mlp(self.norm2(x))


class RotaryVisionAttention(nn.Module):
    """Full attention over the patches of one image or temporal slice; ``most`` patches are planned for."""

    def __init__(self, name: str, spec: RotaryVisionSpec, layers: Layers, most: int) -> None:
        self.spec, self.most = spec, most
        self.qkv = layers.linear(f"{name}.qkv", spec.width, 3 * spec.width, True)
        self.out = layers.linear(f"{name}.out", spec.width, spec.width, True)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        spec, tokens = self.spec, x.shape[1]
        qkv = op.reshape(self.qkv(x), (1, tokens, 3 * spec.heads, spec.head_dim))
        qkv = op.reshape(rotate_heads(qkv, angles, 2 * spec.heads), (1, tokens, 3 * spec.width))
        return self.out(packed_attention(qkv, spec.heads, self.most))


class RotaryVisionTransformer(nn.Module):
    """The tower: patches (1, tokens, patch_values) in merge order to features (1, tokens, width).

    Args:
        most: patches to plan for.
    """

    def __init__(self, spec: RotaryVisionSpec, layers: Layers, most: int = 0, prefix: str = "vision_encoder") -> None:
        self.merge, self.dtype = spec.merge, layers.dtype
        self.patch = layers.linear(f"{prefix}.patch", spec.patch_values, spec.width, False)
        self.blocks = nn.ModuleList(
            [RotaryVisionBlock(f"{prefix}.blocks.{i}", spec, layers, most) for i in range(spec.layers)]
        )

    def cut(self, image: Tensor, rows: int, columns: int, picture: ImageSpec) -> Tensor:
        """The patches of an image, as `cut_merge_patches` takes it."""
        statistics = picture.mean, picture.deviation
        return cut_merge_patches(image, rows, columns, picture.patch, self.merge, statistics, self.dtype)

    def forward(self, patches: Tensor, sides: dict[str, Tensor]) -> Tensor:
        """``sides`` holds ``rotary_angles`` float32 (tokens, head_dim / 2)."""
        x, angles = self.patch(patches), sides["rotary_angles"]
        for block in self.blocks:
            x = block(x, angles)
        return x


def cut_merge_patches(
    image: Tensor, rows: int, columns: int, patch: int, merge: int, statistics: Statistics, dtype: str
) -> Tensor:
    """uint8 (1, height, width, 3) to (1, rows * columns, 3 * 2 * patch * patch): blocks of merge x merge patches,
    values in the order channel, time, row, column, the picture repeated to two frames.
    """

    def compute(image: te.Tensor) -> te.Tensor:
        def value(_: tirx.Var, token: tirx.Var, at: tirx.Var) -> tirx.Expr:
            block, inside = token // (merge * merge), token % (merge * merge)
            row = block // (columns // merge) * merge + inside // merge
            column = block % (columns // merge) * merge + inside % merge
            channel, place = at // (2 * patch * patch), at % (patch * patch)
            pixel = image[0, row * patch + place // patch, column * patch + place % patch, channel]
            return normalised(pixel, channel, statistics, dtype)

        return te.compute((1, rows * columns, CHANNELS * 2 * patch * patch), value, name="cut_merge_patches")

    return op.tensor_expr_op(compute, "cut_merge_patches", [image])
