"""Decoders with low-rank deltas that cannot be folded in: on image rows only (WeMM), or routed per request (Awaker)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.modules.decoders.llama import Cache, DecoderLayers, LayerParts, Routed, Routing
from export.modules.decoders.specs import PartialLora, RoutedLora
from export.modules.kernels import Kernels, Role


class LowRankLinear(Routed):
    """A linear whose output parts each have a low-rank delta of rank ``rank``.

    Parameters: ``base.weight`` (sum of outs, in), ``lora_a.weight`` (parts * rank, in), ``lora_b.j.weight`` (out_j, rank).
    """

    def __init__(self, name: str, inputs: int, outs: Sequence[int], rank: int, bias: bool, kernels: Kernels) -> None:
        super().__init__()
        self.rank = rank
        self.base = kernels.linear(f"{name}.base", inputs, sum(outs), bias, Role.DECODER)
        self.lora_a = kernels.linear(f"{name}.lora_a", inputs, rank * len(outs), False, Role.ADAPTER)
        self.lora_b = nn.ModuleList(
            kernels.linear(f"{name}.lora_b.{j}", rank, out, False, Role.ADAPTER) for j, out in enumerate(outs)
        )

    def up(self, low: Sequence[Tensor]) -> Tensor:
        """The deltas of all parts, side by side, from their low-rank rows."""
        return torch.cat([b(part) for b, part in zip(self.lora_b, low, strict=True)], dim=-1)


class ImageRowLinear(LowRankLinear):
    """Delta on image rows only. Routing: image_index (rows,), delta_index (tokens,); index ``rows`` means no delta."""

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        image_index, delta_index = routing
        low = self.lora_a(x[:, image_index]).split(self.rank, dim=-1)
        delta = self.up(low)
        delta = torch.cat([delta, delta.new_zeros(delta.shape[0], 1, delta.shape[2])], dim=1)
        return self.base(x) + delta[:, delta_index]


class RequestLinear(LowRankLinear):
    """Delta weighted per rank channel. Routing slot ``slot`` holds the channel weights (rank,).

    All experts and the shared one lie side by side along the rank, so that a choice is a row of weights, most of them zero.
    """

    def __init__(self, name: str, inputs: int, outs: Sequence[int], rank: int, kernels: Kernels, slot: int) -> None:
        super().__init__(name, inputs, outs, rank, False, kernels)
        self.slot = slot

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        weights = routing[self.slot].to(x.dtype)
        low = [part * weights for part in self.lora_a(x).split(self.rank, dim=-1)]
        return self.base(x) + self.up(low)


class AdaptedMlp(Routed):
    """down(silu(gate(x)) * up(x)) over routed projections."""

    def __init__(self, width: int, gate_up: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self.width, self.gate_up, self.down = width, gate_up, down

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        gate, up = self.gate_up(x, routing).split(self.width, dim=-1)
        return self.down(F.silu(gate) * up, routing)


class PartialLoraParts(LayerParts):
    """Every projection with a delta on image rows."""

    def linear(self, name: str, inputs: int, outs: Sequence[int], bias: bool = False) -> nn.Module:
        adapter = self.spec.adapter
        assert isinstance(adapter, PartialLora)
        return ImageRowLinear(name, inputs, outs, adapter.rank, bias, self.kernels)

    def qkv(self, name: str) -> nn.Module:
        return self.linear(name, self.spec.hidden, [self.qkv_width], self.spec.qkv_bias)

    def out(self, name: str) -> nn.Module:
        return self.linear(name, self.query_width, [self.spec.hidden])

    def mlp(self, name: str) -> nn.Module:
        width, hidden = self.spec.mlp_width, self.spec.hidden
        gate_up = self.linear(f"{name}.gate_up", hidden, [width, width])
        return AdaptedMlp(width, gate_up, self.linear(f"{name}.down", width, [hidden]))


class PartialLoraDecoder(DecoderLayers):
    """A decoder whose deltas act on image rows in prefill and on nothing in decode."""

    parts = PartialLoraParts

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        image_index: Tensor,
        delta_index: Tensor,
        logit_positions: Tensor,
        past_key_values: Sequence[Cache],
    ) -> tuple[Tensor, list[Cache]]:
        """As `Decoder.forward`; image_index int64 (rows,), delta_index int64 (tokens,) into those rows, or rows for none."""
        routing = (image_index, delta_index)
        return self.run(inputs_embeds, attention_mask, position_ids, logit_positions, past_key_values, routing)


class Gate(nn.Module):
    """One routing gate: the channel weights of all experts from the request's gate input.

    p = softmax of the logits rounded to float16, rounded to float16; the expert of the largest p gets p * p, the shared
    expert 1 - p (rounded to float16). Source: MetabrainAGI/Awaker, Awaker2.5-VL/peft/tuners/moe/layer.py.
    """

    def __init__(self, spec: RoutedLora, hidden: int, kernels: Kernels) -> None:
        super().__init__()
        self.spec = spec
        self.norm = kernels.rms_norm(hidden, spec.norm_eps)
        self.weight = nn.Parameter(torch.empty(spec.experts, hidden))
        self.bias = nn.Parameter(torch.empty(spec.experts))

    def logits(self, gate_input: Tensor) -> Tensor:
        """gate_input (1, hidden) to (1, experts), float32, not rounded yet."""
        x = self.norm(gate_input.to(self.weight.dtype))
        return F.linear(x.float(), self.weight.float(), self.bias.float())

    def shares(self, gate_input: Tensor) -> Tensor:
        """gate_input (1, hidden) to the experts' shares p (1, experts), float32."""
        # the published gate computes in float16, and near a tie the rounding decides which expert is taken
        return torch.softmax(self.logits(gate_input).half().float(), dim=-1).half().float()

    def forward(self, gate_input: Tensor) -> Tensor:
        """gate_input (1, hidden) to channel weights ((experts + 1) * rank,), the shared expert last."""
        spec = self.spec
        share = self.shares(gate_input)
        top = share.amax(dim=-1, keepdim=True)
        order = torch.arange(spec.experts, device=share.device)
        chosen = (order == share.argmax(dim=-1, keepdim=True)).float()
        weights = torch.cat([chosen * top * top, (1 - top).half().float()], dim=-1) * spec.scale
        return weights[..., None].expand(1, spec.experts + 1, spec.rank).reshape(-1)

    def top_share(self, channel_weights: np.ndarray) -> np.ndarray:
        """From what ``forward`` gives back to float32 (experts,): the largest p at the chosen expert, zero elsewhere."""
        spec = self.spec
        return np.sqrt(channel_weights.reshape(spec.experts + 1, spec.rank)[:-1, 0] / spec.scale)


class LayerGates(nn.Module):
    """The two gates of a layer: one for the attention output, one that gate, up and down share."""

    def __init__(self, spec: RoutedLora, hidden: int, kernels: Kernels) -> None:
        super().__init__()
        self.out = Gate(spec, hidden, kernels)
        self.mlp = Gate(spec, hidden, kernels)

    def forward(self, gate_input: Tensor) -> tuple[Tensor, Tensor]:
        return self.out(gate_input), self.mlp(gate_input)


class RoutedLoraParts(LayerParts):
    """Plain q, k, v (their deltas are folded in); routed out, gate, up and down."""

    def linear(self, name: str, inputs: int, outs: Sequence[int], slot: int) -> nn.Module:
        adapter = self.spec.adapter
        assert isinstance(adapter, RoutedLora)
        return RequestLinear(name, inputs, outs, adapter.rank * (adapter.experts + 1), self.kernels, slot)

    def out(self, name: str) -> nn.Module:
        return self.linear(name, self.query_width, [self.spec.hidden], 0)

    def mlp(self, name: str) -> nn.Module:
        width, hidden = self.spec.mlp_width, self.spec.hidden
        gate_up = self.linear(f"{name}.gate_up", hidden, [width, width], 1)
        return AdaptedMlp(width, gate_up, self.linear(f"{name}.down", width, [hidden], 1))

    def gates(self, name: str) -> nn.Module:
        assert isinstance(self.spec.adapter, RoutedLora)
        return LayerGates(self.spec.adapter, self.spec.hidden, self.kernels)


class RoutedLoraDecoder(DecoderLayers):
    """A decoder whose experts are chosen per layer from the request's gate input."""

    parts = RoutedLoraParts

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        gate_input: Tensor,
        logit_positions: Tensor,
        past_key_values: Sequence[Cache],
    ) -> tuple[Tensor, list[Cache]]:
        """As `Decoder.forward`; gate_input float32 (1, hidden), the mean embedding of the request's gate span."""
        return self.run(inputs_embeds, attention_mask, position_ids, logit_positions, past_key_values, (gate_input.float(),))
