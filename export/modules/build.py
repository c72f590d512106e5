"""From a spec to PyTorch stages, and to the list of their parameters."""

from __future__ import annotations

import math

import torch
from torch import nn

from export.modules.connectors.projections import GluConnector, MlpConnector, PatchMerger, WindowConnector
from export.modules.connectors.resampler import Resampler
from export.modules.decoders.llama import Decoder, TokenEmbedding
from export.modules.decoders.low_rank import PartialLoraDecoder, RoutedLoraDecoder
from export.modules.decoders.visual_experts import VisualExpertDecoder
from export.modules.kernels import Embedding, Kernels, Linear
from export.modules.vision.rotary_transformer import RotaryVisionTransformer
from export.modules.vision.transformer import VisionTransformer
from export.quantisation.spec import LayerShape
from export.specs import (
    GluConnectorSpec,
    MlpConnectorSpec,
    ModelSpec,
    PartialLora,
    PatchMergerSpec,
    ResamplerSpec,
    RotaryVisionSpec,
    RoutedLora,
    VisionSpec,
    VisualExperts,
    WindowConnectorSpec,
)
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, STAGES, VISION

VISION_MODULES = {VisionSpec: VisionTransformer, RotaryVisionSpec: RotaryVisionTransformer}
CONNECTOR_MODULES = {
    ResamplerSpec: Resampler,
    MlpConnectorSpec: MlpConnector,
    WindowConnectorSpec: WindowConnector,
    GluConnectorSpec: GluConnector,
    PatchMergerSpec: PatchMerger,
}
DECODER_MODULES = {
    type(None): Decoder,
    PartialLora: PartialLoraDecoder,
    RoutedLora: RoutedLoraDecoder,
    VisualExperts: VisualExpertDecoder,
}
"""Which module builds which spec; a decoder is chosen by its adapter."""


def build_stage(spec: ModelSpec, stage: str, kernels: Kernels) -> nn.Module:
    """One stage with uninitialised parameters; wrap the call in ``torch.device("meta")`` or a fake mode for none."""
    if stage == VISION:
        return VISION_MODULES[type(spec.vision)](spec.vision, kernels)
    if stage == CONNECTOR:
        return CONNECTOR_MODULES[type(spec.connector)](spec.connector, kernels)
    if stage == EMBED:
        return TokenEmbedding(spec.embed.vocabulary, spec.embed.width, spec.embed.scale, kernels)
    if stage == DECODER:
        return DECODER_MODULES[type(spec.decoder.adapter)](spec.decoder, kernels)
    raise ValueError(f"no stage named {stage!r}; stages are {', '.join(STAGES)}")


def meta_stages(spec: ModelSpec) -> dict[str, nn.Module]:
    """All stages on the meta device: structure and shapes, no memory."""
    with torch.device("meta"):
        return {stage: build_stage(spec, stage, Kernels()) for stage in STAGES}


def parameter_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Canonical name (``stage.path``) to shape of every parameter of every stage."""
    stages = meta_stages(spec).items()
    return {f"{stage}.{name}": tuple(p.shape) for stage, module in stages for name, p in module.named_parameters()}


def parameter_count(spec: ModelSpec) -> int:
    """Values that all parameters of a model hold together."""
    return sum(math.prod(shape) for shape in parameter_shapes(spec).values())


def layer_shapes(spec: ModelSpec) -> list[LayerShape]:
    """Every matrix that a plan may quantise: linear layers and the embedding table."""
    found = []
    for stage, module in meta_stages(spec).items():
        for name, layer in module.named_modules():
            if isinstance(layer, Linear):
                found.append(LayerShape(f"{stage}.{name}", str(layer.role), *layer.weight.shape))
            elif isinstance(layer, Embedding):
                found.append(LayerShape(f"{stage}.{name}", "embedding", *layer.weight.shape))
    return found
