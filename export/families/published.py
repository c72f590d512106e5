"""What is published of a family's checkpoints, from its ``published.toml``: names, configs, the defaults of published code.

``[family]`` says what the family is called (`Registration`), ``[[repositories]]`` of which hub repositories a checkpoint is
made where it is published in several (`HubPart`).

A config's tables are laid over one another, the later one winning: ``[common]``, ``[size.SIZE]``, ``[variant.NAME]`` (what
holds at both sizes), ``[variant.NAME.SIZE]``. ``[checkpoints]`` maps hub ids to variants; the first is the default.
``[quantised]`` maps those whose weights were quantised before they were published to the library that did it.

``[class_defaults]`` holds what the published configuration class takes where config.json is silent, ``[marks]`` the ids
of the prompt's special tokens by their text, ``[answers.NAME]`` how the published code chooses tokens
(`GenerationDefaults`), ``[unread]`` which ``keys`` of config.json neither the family nor the published code reads.

``extends`` names the folder of another family here, whose tables, but for `ITS_OWN`, lie under these.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from export.families.config.generation import GenerationDefaults
from runtime_py.errors import UsageError

SIZES = ("full", "tiny")
ITS_OWN = ("family", "checkpoints", "quantised", "repositories", "variant")
"""Tables that say who a family is, and are never another's."""


@dataclass(frozen=True)
class HubPart:
    """One hub repository of a checkpoint that is published in several.

    Attributes:
        place: folder of the joined checkpoint that it becomes; "" for the top.
        weights: its weight files are wanted, not its configs and tokenizer alone.
    """

    repo_id: str
    place: str
    weights: bool = True


@dataclass(frozen=True)
class Registration:
    """What a family is called and known by.

    Attributes:
        name: registry name and ``--model`` alias.
        aliases: what else people call it.
        processor: name of a module under runtime_py/preprocess, or of an entry point (runtime_py/preprocess/processors.py).
        recognised_by: what config.json says of every checkpoint; a family that must look further has a ``recognises``.
        hub_ids: published checkpoints by variant; the first is what the alias downloads.
        hub_parts: the repositories that make up a checkpoint; none where one repository is all of it.
        template: what the published code leaves to the chat template that comes with the checkpoint: "" nothing, "turns" all
            but a system turn that it puts in front itself, "prompt" all of the prompt's text.
    """

    name: str
    processor: str
    licence: str
    hub_ids: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    recognised_by: Mapping[str, Any] = field(default_factory=dict)
    hub_parts: tuple[HubPart, ...] = ()
    template: str = ""


def read_registration(path: Path) -> Registration:
    """``[family]``, ``[checkpoints]`` and ``[[repositories]]`` of a ``published.toml``."""
    tables = _tables(path)
    stated = tables["family"]
    return Registration(
        name=stated["name"],
        processor=stated["processor"],
        licence=stated["licence"],
        hub_ids=tuple(tables["checkpoints"]),
        aliases=tuple(stated.get("aliases", ())),
        recognised_by=stated.get("recognised_by", {}),
        hub_parts=tuple(HubPart(**row) for row in tables.get("repositories", ())),
        template=stated.get("template", ""),
    )


@dataclass(frozen=True)
class PublishedCode:
    """Defaults of the published code, by the tables of the file that the module's text names."""

    class_defaults: Mapping[str, Any]
    marks: Mapping[str, int]
    answers: Mapping[str, GenerationDefaults]
    unread: frozenset[str] = frozenset()


@cache
def read_code(path: Path) -> PublishedCode:
    """The defaults in a ``published.toml``."""
    tables = _tables(path)
    answers = {name: GenerationDefaults(**table) for name, table in tables.get("answers", {}).items()}
    unread = frozenset(tables.get("unread", {}).get("keys", ()))
    return PublishedCode(tables.get("class_defaults", {}), tables.get("marks", {}), answers, unread)


def read_published(path: Path, variant: str, size: str) -> dict[str, Any]:
    """The config of ``variant`` ("" for the first; a hub id is taken too) at ``size`` "full" or "tiny".

    Raises:
        UsageError: no such variant or size.
    """
    tables = _tables(path)
    checkpoints: dict[str, str] = tables["checkpoints"]
    names = list(dict.fromkeys(checkpoints.values()))
    wanted = checkpoints.get(variant, variant) or names[0]
    if wanted not in names or size not in SIZES:
        raise UsageError(
            f"{path.parent.name} has no config for variant {variant!r} at size {size!r}",
            f"variant {' or '.join(names)}, size {' or '.join(SIZES)}",
            "choose one of these",
        )
    own = tables.get("variant", {}).get(wanted, {})
    shared = {key: value for key, value in own.items() if key not in SIZES}
    config: dict[str, Any] = {}
    for table in (tables.get("common", {}), tables["size"].get(size, {}), shared, own.get(size, {})):
        config = laid_over(config, table)
    return dict(sorted(config.items()))


def variants(path: Path) -> dict[str, str]:
    """Hub id to variant of every published checkpoint."""
    return dict(_tables(path)["checkpoints"])


def quantised(path: Path) -> dict[str, str]:
    """Hub id to the library that quantised it, of the published checkpoints that were."""
    return dict(_tables(path).get("quantised", {}))


def _tables(path: Path) -> dict[str, Any]:
    """The file's tables, over those of the file that it extends."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    if "extends" not in tables:
        return tables
    base = _tables(Path(__file__).parent / tables["extends"] / path.name)
    return laid_over({name: table for name, table in base.items() if name not in ITS_OWN}, tables)


def laid_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A table with another on top of it; tables inside are joined in the same way."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = laid_over(merged[key], value) if both else value
    return merged
