"""A checkpoint folder whose family is known and whose config.json is read: once, for all that an export asks of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.families.base import Family
from export.families.registry import family_of, read_config
from export.source.side_files import SideFile, side_files
from export.specs import ModelSpec

if TYPE_CHECKING:
    from export.source.tensor_source import TensorSource


@dataclass(frozen=True)
class RecognisedCheckpoint:
    """One checkpoint folder.

    Attributes:
        stated: what config.json says; empty where there is none.
    """

    folder: Path
    family: Family
    stated: Mapping[str, Any]

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """What the family makes of config.json and the settings files beside it (`Family.load_config`)."""
        return self.family.load_config(self.folder, self.stated)

    def open_source(self) -> TensorSource:
        """The checkpoint's tensors.

        Raises:
            CheckpointError: the folder holds no weights, or weights that are damaged, incomplete or unsafe.
        """
        return self.family.open_source(self.folder, self.stated)

    def spec(self, source: TensorSource) -> ModelSpec:
        """The model, from its config and the shapes of ``source``."""
        return self.family.spec(self.config, source)

    def side_files(self) -> tuple[SideFile, ...]:
        """The files beside the weights that a package keeps; licences come from every part of the checkpoint."""
        parts = [self.folder / place for place in self.family.parts(self.config).values()]
        folders = [part if part.is_dir() else part.parent for part in parts]
        return side_files(self.folder, self.family.side_folders(self.folder, self.stated), folders)


def recognise_checkpoint(folder: Path) -> RecognisedCheckpoint:
    """Read config.json and ask the families.

    Raises:
        CheckpointError: config.json is no JSON object.
        UnsupportedModelError: no family knows the checkpoint, or one knows it by name and does not build it.
    """
    stated = read_config(folder)
    return RecognisedCheckpoint(folder, family_of(folder, stated), stated)
