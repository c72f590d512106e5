"""A checkpoint recognised and described: what every later part of an export reads."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.checkpoint.recognised import RecognisedCheckpoint, recognise_checkpoint
from export.families.base import Family
from export.families.names import meant
from export.families.registry import families
from export.package.manifest import relative_name
from export.request import ExportRequest
from export.source.side_files import Purpose, SideFile, named
from export.source.tensor_source import EmptySource
from export.specs import ModelSpec
from runtime_py.errors import EdgeproofError, UsageError
from runtime_py.prompt.format import prompt_of

if TYPE_CHECKING:
    from export.source.weight_map import WeightMap


@dataclass(frozen=True)
class OpenedCheckpoint:
    """One checkpoint.

    Attributes:
        folder: where its files lie; None for a plan made from a family's published config.
        id: hub id or folder name, for the manifest.
        weights: the checked weight map; None where no weights are on disk.
        stated: what config.json says; empty for a plan made from a family's published config.
        side_files: what a package keeps of the files beside the weights.
    """

    family: Family
    spec: ModelSpec
    id: str
    revision: str | None
    folder: Path | None
    weights: WeightMap | None
    stated: Mapping[str, Any] = field(default_factory=dict)
    side_files: tuple[SideFile, ...] = ()

    def files(self) -> dict[str, Path]:
        """Every file of the checkpoint that the package depends on: recorded name to path."""
        if self.folder is None or self.weights is None:
            return {}
        used = {file for info in self.weights.source.infos.values() for file in (info.file, *info.beside)}
        used |= set(self.folder.glob("*.index.json")) | {self.folder / file.path for file in self.side_files}
        return {relative_name(path, self.folder): path for path in sorted(used)}

    def tokenizer_folder(self) -> Path | None:
        """The folder that holds the checkpoint's tokenizer; None where there is none."""
        vocabularies = named(self.side_files, Purpose.VOCABULARY)
        if self.folder is None or not vocabularies:
            return None
        return (self.folder / vocabularies[0].path).parent

    def kept_files(self) -> tuple[SideFile, ...]:
        """The side files that a package has copies of: where it gets a tokenizer in our own form, no other one."""
        if self.tokenizer_folder() is None:
            return self.side_files
        return tuple(file for file in self.side_files if file.purpose not in (Purpose.VOCABULARY, Purpose.TOKENS))

    def check_tokenizer(self) -> tuple[str, ...]:
        """Hold the tokenizer against the embedding table and its chat template against the prompt; what is to be known of
        both (`export.package.tokenizer_check`, `export.prompts.stated_template`).
        """
        from export.package.tokenizer_check import check_tokenizer
        from export.prompts.stated_template import check_template

        folder = self.tokenizer_folder()
        if folder is None:
            return ()
        notes, makes = check_tokenizer(folder, self.spec.embed.vocabulary), self.family.template
        return (*notes, *check_template(prompt_of(self.spec.runtime), folder, makes)) if makes else notes


def open_checkpoint(request: ExportRequest) -> OpenedCheckpoint:
    """Find the checkpoint (downloading it when it is a hub id), recognise its family and check every tensor.

    Raises:
        CheckpointError, UnsupportedModelError, UsageError, MachineError: each says what to do.
    """
    from export.source.hub import resolve

    resolved = resolve(request.model, request.weights, request.revision)
    return opened(resolved.recognised or recognise_checkpoint(resolved.folder), resolved.id, resolved.revision)


def open_folder(folder: Path) -> OpenedCheckpoint:
    """As `open_checkpoint`, of a folder that is called after itself."""
    return opened(recognise_checkpoint(folder), folder.resolve().name, None)


def opened(recognised: RecognisedCheckpoint, name: str, revision: str | None) -> OpenedCheckpoint:
    """A recognised checkpoint with every tensor checked; ``name`` and ``revision`` are for the manifest.

    Raises:
        CheckpointError, UnsupportedModelError: see `export.source.checkpoint` and `export.source.weight_map`.
    """
    from export.modules.build import parameter_shapes

    source = recognised.open_source()
    spec = recognised.spec(source)
    weights = recognised.family.weight_map(spec, source)
    weights.check(parameter_shapes(spec))
    return OpenedCheckpoint(
        recognised.family, spec, name, revision, recognised.folder, weights, recognised.stated, recognised.side_files()
    )


def describe_checkpoint(request: ExportRequest) -> OpenedCheckpoint:
    """As `open_checkpoint`, but config.json is enough: weights are checked where they lie, and none are downloaded.

    An alias or a published hub id stands for the config that the family keeps of it; any other hub id, and any asked
    revision, has its configs fetched.
    """
    from export.source.hub import DEMO

    stands_for = meant(request.model)
    if request.weights == DEMO:
        return open_checkpoint(request)
    if request.weights is not None or stands_for.folder is not None:
        folder = Path(request.weights or request.model)
        if not folder.is_dir() or _has_weights(folder) or _has_parts(folder):
            return open_checkpoint(request)
        return _from_config(folder, folder.resolve().name, None)
    assert stands_for.hub_id is not None
    if stands_for.published is not None and request.revision is None:
        family, hub_id = stands_for.published.family, stands_for.published.hub_id
        spec = describe_config(family, family.published_config(hub_id, "full"))
        return OpenedCheckpoint(family, spec, hub_id, None, None, None)
    folder = _configs_of(stands_for.hub_id, request.revision)
    return _from_config(folder, stands_for.hub_id, folder.name)


def describe_config(family: Family, config: Mapping[str, Any]) -> ModelSpec:
    """The model that a config alone implies.

    Raises:
        CheckpointError: the family needs tensors to tell.
    """
    return family.spec(config, EmptySource())


def _from_config(folder: Path, name: str, revision: str | None) -> OpenedCheckpoint:
    recognised = recognise_checkpoint(folder)
    spec = describe_config(recognised.family, recognised.config)
    return OpenedCheckpoint(
        recognised.family, spec, name, revision, folder, None, recognised.stated, recognised.side_files()
    )


class _ConfigsFetched(EdgeproofError):
    """Ends a download once the configs are here."""


def _configs_of(hub_id: str, revision: str | None) -> Path:
    """The configs of a hub repository, without its weights."""
    from export.source.hub import fetch

    configs: list[Path] = []

    def stop(folder: Path) -> None:
        configs.append(folder)
        raise _ConfigsFetched("configs fetched", "no weights", "go on")

    with contextlib.suppress(_ConfigsFetched):
        fetch(hub_id, revision, check=stop)
    return configs[0]


def _has_weights(folder: Path) -> bool:
    from export.source.checkpoint import WEIGHT_FILES

    return any(any(folder.glob(pattern)) for pattern in WEIGHT_FILES)


def _has_parts(folder: Path) -> bool:
    """Whether the weights of a checkpoint in several folders are all there."""
    recognised = recognise_checkpoint(folder)
    parts = [folder / place for place in recognised.family.parts(recognised.config).values()]
    return all(part.is_file() or (part.is_dir() and _has_weights(part)) for part in parts)


def published_specs() -> list[tuple[Family, ModelSpec]]:
    """Every family that declares its published config, with the full-size model it implies."""
    specs = []
    for family in families().values():
        try:
            config = family.published_config("", "full")
        except UsageError:
            continue
        specs.append((family, family.spec(config, EmptySource())))
    return specs
