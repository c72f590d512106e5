"""Connectors that project patch rows: MLP, strided window, gated, patch merger. All map onto the decoder's width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.modules.connectors.specs import GluConnectorSpec, MlpConnectorSpec, PatchMergerSpec, WindowConnectorSpec
from export.modules.kernels import Kernels, Role


class MlpConnector(nn.Module):
    """fc2(gelu(fc1(norm(x)))) per row, or without the norm. Source: xverse-ai/XVERSE-V-13B, vxverse/models/vxverse.py."""

    def __init__(self, spec: MlpConnectorSpec, kernels: Kernels, prefix: str = "connector") -> None:
        super().__init__()
        self.norm = nn.Identity() if spec.norm_eps is None else kernels.layer_norm(spec.vision_width, spec.norm_eps)
        self.fc1 = kernels.linear(f"{prefix}.fc1", spec.vision_width, spec.width, True, Role.CONNECTOR)
        self.fc2 = kernels.linear(f"{prefix}.fc2", spec.width, spec.width, True, Role.CONNECTOR)

    def forward(self, vision_features: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(vision_features))))


class WindowConnector(nn.Module):
    """A k x k convolution of stride k as gather and matmul, GELU, linear, between two learned rows.

    Source: Ascend/MindIE-LLM, examples/atb_models/atb_llm/models/wemm/{modeling_downsampler,data_preprocess_wemm}.py.
    """

    def __init__(self, spec: WindowConnectorSpec, kernels: Kernels, prefix: str = "connector") -> None:
        super().__init__()
        window = spec.kernel * spec.kernel * spec.vision_width
        self.conv = kernels.linear(f"{prefix}.conv", window, spec.width, False, Role.CONNECTOR)
        self.proj = kernels.linear(f"{prefix}.proj", spec.width, spec.width, False, Role.CONNECTOR)
        self.splitters = nn.Parameter(torch.empty(spec.splitters, spec.width))

    def forward(self, vision_features: Tensor, window_index: Tensor) -> Tensor:
        """Vision rows (images, tokens, vision_width) and int64 windows (cells, k * k), each row-major in its window."""
        images = vision_features.shape[0]
        windows = vision_features[:, window_index].flatten(2)
        cells = self.proj(F.gelu(self.conv(windows)))
        first, last = (self.splitters[i].expand(images, 1, -1) for i in (0, 1))
        return torch.cat([first, cells, last], dim=1)


class GluConnector(nn.Module):
    """2 x 2 convolution, linear, LayerNorm + GELU, gated MLP, between two learned rows.

    Source: THUDM/cogvlm2-llama3-chat-19B visual.py (kept in Niky-san/cogvlm2_surce).
    """

    def __init__(self, spec: GluConnectorSpec, kernels: Kernels, prefix: str = "connector") -> None:
        super().__init__()
        self.grid, self.mlp_width = spec.grid, spec.mlp_width
        width = spec.vision_width

        def linear(name: str, inputs: int, outputs: int, bias: bool = False) -> nn.Module:
            return kernels.linear(f"{prefix}.{name}", inputs, outputs, bias, Role.CONNECTOR)

        self.conv = linear("conv", 4 * width, width, True)
        self.proj = linear("proj", width, spec.width)
        self.norm = kernels.layer_norm(spec.width, spec.norm_eps)
        self.gate_up = linear("gate_up", spec.width, 2 * spec.mlp_width)
        self.down = linear("down", spec.mlp_width, spec.width)
        self.begin = nn.Parameter(torch.empty(1, spec.width))
        self.end = nn.Parameter(torch.empty(1, spec.width))

    def forward(self, vision_features: Tensor) -> Tensor:
        images, _, width = vision_features.shape
        half = self.grid // 2
        x = vision_features[:, 1 : 1 + 4 * half * half].reshape(images, half, 2, half, 2, width)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(images, half * half, 4 * width)
        x = F.gelu(self.norm(self.proj(self.conv(x))))
        gate, up = self.gate_up(x).split(self.mlp_width, dim=-1)
        x = self.down(F.silu(gate) * up)
        return torch.cat([self.begin.expand(images, 1, -1), x, self.end.expand(images, 1, -1)], dim=1)


class PatchMerger(nn.Module):
    """LayerNorm per patch, neighbours joined, two linears. Source: transformers, models/qwen2_vl/modeling_qwen2_vl.py."""

    def __init__(self, spec: PatchMergerSpec, kernels: Kernels, prefix: str = "connector") -> None:
        super().__init__()
        self.joined = spec.vision_width * spec.merge * spec.merge
        self.norm = kernels.layer_norm(spec.vision_width, spec.norm_eps)
        self.fc1 = kernels.linear(f"{prefix}.fc1", self.joined, self.joined, True, Role.CONNECTOR)
        self.fc2 = kernels.linear(f"{prefix}.fc2", self.joined, spec.width, True, Role.CONNECTOR)

    def forward(self, vision_features: Tensor) -> Tensor:
        x = self.norm(vision_features)
        x = x.reshape(x.shape[0], -1, self.joined)
        return self.fc2(F.gelu(self.fc1(x)))
