"""config.json of every published checkpoint, from a family's ``published.toml``.

The file's tables are laid over one another, the later one winning: ``[common]``, ``[size.SIZE]``, ``[variant.NAME]`` (what
holds at both sizes), ``[variant.NAME.SIZE]``. ``[checkpoints]`` maps hub ids to variants; the first is the default.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime_py.errors import UsageError

SIZES = ("full", "tiny")


def read_published(path: Path, variant: str, size: str) -> dict[str, Any]:
    """The config of ``variant`` ("" for the first; a hub id is taken too) at ``size`` "full" or "tiny".

    Raises:
        UsageError: no such variant or size.
    """
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
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
    return dict(tomllib.loads(path.read_text(encoding="utf-8"))["checkpoints"])


def laid_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A table with another on top of it; tables inside are joined in the same way."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = laid_over(merged[key], value) if both else value
    return merged
