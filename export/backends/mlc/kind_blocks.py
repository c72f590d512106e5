"""Which Relax block builds which tower, connector and decoder layer, by name: a plan can ask without importing TVM."""

from __future__ import annotations

from export.modules.connectors.specs import (
    GluConnectorSpec,
    MlpConnectorSpec,
    PatchMergerSpec,
    ResamplerSpec,
    WindowConnectorSpec,
)
from export.modules.decoders.specs import PartialLora, RoutedLora, Unadapted, VisualExperts
from export.modules.kind import Kind
from export.modules.vision.specs import RotaryVisionSpec, VisionSpec

FOLDER = "export.backends.mlc.blocks"
BLOCKS: dict[type[Kind], str] = {
    VisionSpec: f"{FOLDER}.vision:VisionTransformer",
    RotaryVisionSpec: f"{FOLDER}.rotary_vision:RotaryVisionTransformer",
    ResamplerSpec: f"{FOLDER}.resampler:Resampler",
    MlpConnectorSpec: f"{FOLDER}.projections:MlpConnector",
    WindowConnectorSpec: f"{FOLDER}.projections:WindowConnector",
    GluConnectorSpec: f"{FOLDER}.projections:GluConnector",
    PatchMergerSpec: f"{FOLDER}.projections:PatchMerger",
    Unadapted: f"{FOLDER}.layer_parts:LayerParts",
    PartialLora: f"{FOLDER}.adapters:PartialLoraParts",
    RoutedLora: f"{FOLDER}.adapters:RoutedLoraParts",
    VisualExperts: f"{FOLDER}.adapters:VisualExpertParts",
}
"""Those of the shared kinds; a kind that a family brings names its own (`Kind.block`)."""


def block_of(spec: Kind) -> str:
    """``package.module:Class`` of the block of a tower, a connector or a decoder's layers; "" where there is none."""
    return BLOCKS.get(type(spec), spec.block)
