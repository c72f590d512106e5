"""Which Relax block builds which tower and connector, by name, so that a plan can ask without importing TVM."""

from __future__ import annotations

from export.modules.connectors.specs import (
    GluConnectorSpec,
    MlpConnectorSpec,
    PatchMergerSpec,
    ResamplerSpec,
    WindowConnectorSpec,
)
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
}
"""Those of the shared kinds; a kind that a family brings names its own (`Kind.block`)."""


def block_of(spec: Kind) -> str:
    """``package.module:Class`` of the block of a tower or connector; "" where there is none."""
    return BLOCKS.get(type(spec), spec.block)
