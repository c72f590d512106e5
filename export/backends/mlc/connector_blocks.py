"""Which Relax block builds which connector, by name, so that a plan can ask without importing TVM."""

from __future__ import annotations

from export.modules.connectors.base import ConnectorSpec
from export.modules.connectors.specs import (
    GluConnectorSpec,
    MlpConnectorSpec,
    PatchMergerSpec,
    ResamplerSpec,
    WindowConnectorSpec,
)

FOLDER = "export.backends.mlc.blocks"
BLOCKS: dict[type[ConnectorSpec], str] = {
    ResamplerSpec: f"{FOLDER}.resampler:Resampler",
    MlpConnectorSpec: f"{FOLDER}.projections:MlpConnector",
    WindowConnectorSpec: f"{FOLDER}.projections:WindowConnector",
    GluConnectorSpec: f"{FOLDER}.projections:GluConnector",
    PatchMergerSpec: f"{FOLDER}.projections:PatchMerger",
}
"""Those of the shared kinds; a kind that a family brings names its own (`ConnectorSpec.block`)."""


def block_of(connector: ConnectorSpec) -> str:
    """``package.module:Class`` of a connector's block; "" where there is none."""
    return BLOCKS.get(type(connector), connector.block)
