"""What a family supplies: recognition, spec, weights, runtime settings. One folder under export/families each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from export.source.tensor_source import TensorSource
from export.source.weight_map import WeightMap
from export.specs import ModelSpec
from runtime_py.errors import UsageError


class Family(ABC):
    """One model lineage.

    Class attributes:
        name: registry name and ``--model`` alias.
        processor: module name under runtime_py/preprocess.
        hub_ids: published checkpoints by variant; the first is what the alias downloads.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    processor: ClassVar[str]
    hub_ids: ClassVar[tuple[str, ...]]
    licence: ClassVar[str]

    @abstractmethod
    def recognises(self, config: Mapping[str, Any], folder: Path) -> bool:
        """Whether this checkpoint folder belongs to the family. Raises UnsupportedModelError for a version that is
        known by name and not built."""

    def load_config(self, folder: Path) -> dict[str, Any]:
        """The config that `spec` reads: config.json, or more for families published in several parts."""
        from export.registry import read_config

        return read_config(folder)

    @abstractmethod
    def spec(self, config: Mapping[str, Any], source: TensorSource) -> ModelSpec:
        """The model, with every size from config.json, the class defaults of the published code, or tensor shapes."""

    @abstractmethod
    def weight_map(self, spec: ModelSpec, source: TensorSource) -> WeightMap:
        """One rule per parameter of the stages built from ``spec``."""

    def open_source(self, folder: Path) -> TensorSource:
        """Open the checkpoint's tensors; families published in several parts override this."""
        from export.source.checkpoint import open_checkpoint

        return open_checkpoint(folder)

    def published_config(self, variant: str, size: str) -> dict[str, Any]:
        """config.json of a published ``variant`` ("" for the first), at ``size`` "full" or "tiny"; for rehearsals.

        Raises:
            UsageError: the family declares none, or none of that name.
        """
        raise UsageError(
            f"{self.name} declares no config of its published checkpoints (variant {variant or 'default'}, size {size})",
            "a family that implements published_config, e.g. minicpm-v",
            "choose another family, or use a real checkpoint",
        )
