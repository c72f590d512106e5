"""What is published of a family's checkpoints, from its ``published.toml``: configs, and the defaults of the published code.

A config's tables are laid over one another, the later one winning: ``[common]``, ``[size.SIZE]``, ``[variant.NAME]`` (what
holds at both sizes), ``[variant.NAME.SIZE]``. ``[checkpoints]`` maps hub ids to variants; the first is the default.

``[class_defaults]`` holds what the published configuration class takes where config.json is silent, ``[marks]`` the ids
of the prompt's special tokens by their text, ``[answers.NAME]`` how the published code chooses tokens
(`GenerationDefaults`).

``extends`` names the folder of another family here, whose tables, but for its checkpoints, lie under these.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from export.families.config.generation import GenerationDefaults
from runtime_py.errors import UsageError

SIZES = ("full", "tiny")


@dataclass(frozen=True)
class PublishedCode:
    """Defaults of the published code, by the tables of the file that the module's text names."""

    class_defaults: Mapping[str, Any]
    marks: Mapping[str, int]
    answers: Mapping[str, GenerationDefaults]


@cache
def read_code(path: Path) -> PublishedCode:
    """The defaults in a ``published.toml``."""
    tables = _tables(path)
    answers = {name: GenerationDefaults(**table) for name, table in tables.get("answers", {}).items()}
    return PublishedCode(tables.get("class_defaults", {}), tables.get("marks", {}), answers)


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


def _tables(path: Path) -> dict[str, Any]:
    """The file's tables, over those of the file that it extends."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    if "extends" not in tables:
        return tables
    base = _tables(Path(__file__).parent / tables["extends"] / path.name)
    return laid_over({name: table for name, table in base.items() if name not in ("checkpoints", "variant")}, tables)


def laid_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A table with another on top of it; tables inside are joined in the same way."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = laid_over(merged[key], value) if both else value
    return merged
