"""What a family supplies: recognition, spec, weights, runtime settings. One folder under export/families each."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from export.families.config.documents import read_optional
from export.families.config.settings import SETTINGS, settings_of
from export.families.published import HubPart, PublishedCode, read_code, read_published, read_registration
from export.families.tensors import PublishedTensors
from export.source.tensor_source import TensorSource
from export.source.weight_map import WeightMap
from export.specs import ModelSpec
from runtime_py.preprocess.base import Processor, TokenizerLike
from runtime_py.preprocess.processors import make_processor


class Family(ABC):
    """One model lineage.

    Class attributes, which ``published.toml`` says of a class that does not say them itself: see
    `export.families.published.Registration`; and

        tensors: the published tensors, where they follow from the spec alone.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    processor: ClassVar[str]
    recognised_by: ClassVar[Mapping[str, Any]] = {}
    hub_ids: ClassVar[tuple[str, ...]]
    hub_parts: ClassVar[tuple[HubPart, ...]] = ()
    licence: ClassVar[str]
    template: ClassVar[str] = ""
    tensors: ClassVar[PublishedTensors]

    def __init_subclass__(cls) -> None:
        table = _table_of(cls)
        if table.is_file() and "name" not in vars(cls):
            for name, value in vars(read_registration(table)).items():
                setattr(cls, name, value)

    def recognises(self, config: Mapping[str, Any], folder: Path) -> bool:
        """Whether this checkpoint folder belongs to the family.

        Raises:
            UnsupportedModelError: a version that is known by name and not built; other families are asked all the same.
        """
        known = self.recognised_by
        return bool(known) and all(config.get(key) == value for key, value in known.items())

    def load_config(self, folder: Path, stated: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The config that `spec` reads: config.json, and the other settings files under the keys of `SETTINGS`.

        Args:
            stated: what config.json says, where it is read already.

        Raises:
            CheckpointError: one of them is no JSON object.
        """
        own = read_optional(folder / "config.json") if stated is None else stated
        return {**own, **settings_of(folder)}

    @abstractmethod
    def spec(self, config: Mapping[str, Any], source: TensorSource) -> ModelSpec:
        """The model, with every size from config.json, the class defaults of the published code, or tensor shapes."""

    def weight_map(self, spec: ModelSpec, source: TensorSource) -> WeightMap:
        """One rule per parameter of the stages built from ``spec``."""
        return self.tensors.map(spec, source)

    def make_processor(self, spec: ModelSpec, words: TokenizerLike | None = None) -> Processor:
        """The family's processor for a model; without a tokenizer it takes pictures and ids, and no text."""
        return make_processor(self.processor, spec.runtime, words)

    def open_source(self, folder: Path, stated: Mapping[str, Any] | None = None) -> TensorSource:
        """Open the checkpoint's tensors; families published in several parts override this.

        Args:
            stated: what config.json says, where it is read already.
        """
        from export.source.checkpoint import open_checkpoint

        return open_checkpoint(folder)

    def parts(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Where a checkpoint folder keeps its tensors: prefix of names in `open_source` to a folder or ``.bin`` file."""
        return {"": "."}

    def config_files(self, config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """The JSON files of a checkpoint folder that `load_config` reads this config back from, by relative path."""
        own = {key: value for key, value in config.items() if key not in SETTINGS}
        return {"config.json": own} | {file: config[key] for key, file in SETTINGS.items() if config.get(key)}

    def side_folders(self, folder: Path, stated: Mapping[str, Any]) -> list[Path]:
        """Folders with a checkpoint's tokenizer and generation settings; the first that has a file wins.

        Args:
            stated: what config.json says.
        """
        return [folder]

    def published_config(self, variant: str, size: str) -> dict[str, Any]:
        """The config `spec` reads, of a published ``variant`` ("" for the first, or a hub id), at ``size`` "full" or "tiny".

        Raises:
            UsageError: no such variant or size.
        """
        return read_published(self.published_table(), variant, size)

    def published_code(self) -> PublishedCode:
        """Defaults of the published code."""
        return read_code(self.published_table())

    def published_table(self) -> Path:
        """published.toml beside the family's module."""
        return _table_of(type(self))


def _table_of(family: type[Family]) -> Path:
    module = sys.modules[family.__module__]
    assert module.__file__ is not None
    return Path(module.__file__).with_name("published.toml")
