"""Connectors that project patch rows, in Relax, from the specs that export.modules.connectors.projections builds."""

from __future__ import annotations

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from export.backends.mlc.blocks.linear import Layers
from export.backends.mlc.blocks.norms import LayerNorm
from export.backends.mlc.blocks.vision import activate
from export.modules.connectors.specs import GluConnectorSpec, MlpConnectorSpec, PatchMergerSpec, WindowConnectorSpec
from export.specs import Activation

Sides = dict[str, Tensor]


def learned_row(parameter: Tensor, dtype: str) -> Tensor:
    """A (1, width) parameter as one row of a (1, rows, width) sequence."""
    return op.reshape(parameter, (1, *parameter.shape)).astype(dtype)


class MlpConnector(nn.Module):
    """fc2(gelu(fc1(norm(x)))) per row, or without the norm."""

    def __init__(self, spec: MlpConnectorSpec, layers: Layers, prefix: str = "connector") -> None:
        self.norm = None if spec.norm_eps is None else LayerNorm(spec.vision_width, spec.norm_eps, layers.dtype)
        self.fc1 = layers.linear(f"{prefix}.fc1", spec.vision_width, spec.width, True)
        self.fc2 = layers.linear(f"{prefix}.fc2", spec.width, spec.width, True)

    def forward(self, features: Tensor, sides: Sides) -> Tensor:
        rows = features if self.norm is None else self.norm(features)
        return self.fc2(activate(self.fc1(rows), Activation.GELU))


class WindowConnector(nn.Module):
    """Windows of patches by index, linear, GELU, linear, between two learned rows."""

    def __init__(self, spec: WindowConnectorSpec, layers: Layers, prefix: str = "connector") -> None:
        self.spec, self.dtype = spec, layers.dtype
        window = spec.kernel * spec.kernel * spec.vision_width
        self.conv = layers.linear(f"{prefix}.conv", window, spec.width, False)
        self.proj = layers.linear(f"{prefix}.proj", spec.width, spec.width, False)
        self.splitters = nn.Parameter((spec.splitters, spec.width), layers.dtype)

    def forward(self, features: Tensor, sides: Sides) -> Tensor:
        """``sides`` holds ``window_index`` int32 (cells, kernel * kernel)."""
        index = sides["window_index"]
        cells, places = index.shape
        rows = op.take(features, op.reshape(index, (cells * places,)), axis=1)
        windows = op.reshape(rows, (1, cells, places * self.spec.vision_width))
        x = self.proj(activate(self.conv(windows), Activation.GELU))
        first, last, *_ = op.split(self.splitters, self.spec.splitters, axis=0)
        return op.concat([learned_row(first, self.dtype), x, learned_row(last, self.dtype)], dim=1)


class GluConnector(nn.Module):
    """2 x 2 convolution, linear, LayerNorm + GELU, gated MLP, between two learned rows; the class row is dropped."""

    def __init__(self, spec: GluConnectorSpec, layers: Layers, prefix: str = "connector") -> None:
        self.spec, self.dtype = spec, layers.dtype
        width = spec.vision_width
        self.conv = layers.linear(f"{prefix}.conv", 4 * width, width, True)
        self.proj = layers.linear(f"{prefix}.proj", width, spec.width, False)
        self.norm = LayerNorm(spec.width, spec.norm_eps, layers.dtype)
        self.gate_up = layers.linear(f"{prefix}.gate_up", spec.width, 2 * spec.mlp_width, False)
        self.down = layers.linear(f"{prefix}.down", spec.mlp_width, spec.width, False)
        self.begin = nn.Parameter((1, spec.width), layers.dtype)
        self.end = nn.Parameter((1, spec.width), layers.dtype)

    def forward(self, features: Tensor, sides: Sides) -> Tensor:
        grid, width, half = self.spec.grid, self.spec.vision_width, self.spec.grid // 2
        x = op.split(features, [1, 1 + grid * grid], axis=1)[1]
        x = op.permute_dims(op.reshape(x, (1, half, 2, half, 2, width)), axes=[0, 1, 3, 2, 4, 5])
        x = self.proj(self.conv(op.reshape(x, (1, half * half, 4 * width))))
        gate, up = op.split(self.gate_up(activate(self.norm(x), Activation.GELU)), 2, axis=-1)
        x = self.down(op.silu(gate) * up)
        return op.concat([learned_row(self.begin, self.dtype), x, learned_row(self.end, self.dtype)], dim=1)


class PatchMerger(nn.Module):
    """LayerNorm per patch, neighbours joined, two linears."""

    def __init__(self, spec: PatchMergerSpec, layers: Layers, prefix: str = "connector") -> None:
        self.places, self.width = spec.merge * spec.merge, spec.vision_width
        joined = self.places * self.width
        self.norm = LayerNorm(spec.vision_width, spec.norm_eps, layers.dtype)
        self.fc1 = layers.linear(f"{prefix}.fc1", joined, joined, True)
        self.fc2 = layers.linear(f"{prefix}.fc2", joined, spec.width, True)

    def forward(self, features: Tensor, sides: Sides) -> Tensor:
        x = self.norm(features)
        x = op.reshape(x, (1, x.shape[1] // self.places, self.places * self.width))
        return self.fc2(activate(self.fc1(x), Activation.GELU))
