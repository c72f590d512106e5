"""A decoder with a second set of weights for vision tokens (CogVLM2).

Every token goes through exactly one set: vision rows and language rows are gathered, each multiplied by its own weights,
and put back in order. Attention itself is joint. Source: THUDM/cogvlm2-llama3-chat-19B modeling_cogvlm.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.modules.decoders.llama import Cache, DecoderLayers, GatedMlp, LayerParts, Routed, Routing
from export.modules.kernels import Role


class Experts(Routed):
    """Two modules of equal shape. Routing: language_index, vision_index (rows each), restore_index (tokens,)."""

    def __init__(self, language: nn.Module, vision: nn.Module) -> None:
        super().__init__()
        self.language, self.vision = language, vision

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        language_index, vision_index, restore_index = routing
        rows = [self.language(x[:, language_index]), self.vision(x[:, vision_index])]
        return torch.cat(rows, dim=1)[:, restore_index]


class VisualExpertParts(LayerParts):
    """Every projection twice; only the vision qkv has a bias."""

    def qkv(self, name: str) -> nn.Module:
        hidden, width = self.spec.hidden, self.qkv_width
        return Experts(
            self.kernels.linear(f"{name}.language", hidden, width, False, Role.DECODER),
            self.kernels.linear(f"{name}.vision", hidden, width, True, Role.DECODER),
        )

    def out(self, name: str) -> nn.Module:
        sets = [
            self.kernels.linear(f"{name}.{expert}", self.query_width, self.spec.hidden, False, Role.DECODER)
            for expert in ("language", "vision")
        ]
        return Experts(*sets)

    def mlp(self, name: str) -> nn.Module:
        return Experts(*(GatedMlp(f"{name}.{expert}", self.spec, self.kernels) for expert in ("language", "vision")))


class VisualExpertDecoder(DecoderLayers):
    """A decoder that routes each token to one of two weight sets."""

    parts = VisualExpertParts

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        language_index: Tensor,
        vision_index: Tensor,
        restore_index: Tensor,
        logit_positions: Tensor,
        past_key_values: Sequence[Cache],
    ) -> tuple[Tensor, list[Cache]]:
        """As `Decoder.forward`.

        Args:
            language_index, vision_index: int64, which tokens each set takes, together every token once.
            restore_index: int64 (tokens,), where each token stands in language rows followed by vision rows.
        """
        routing = (language_index, vision_index, restore_index)
        return self.run(inputs_embeds, attention_mask, position_ids, logit_positions, past_key_values, routing)
