"""Families by folder scan: a folder under export/families that has a ``family.py`` with a ``FAMILY`` object is one."""

from __future__ import annotations

import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from export.families.base import Family
from runtime_py.errors import CheckpointError, UnsupportedModelError

_FOLDER = Path(__file__).parent


@cache
def families() -> dict[str, Family]:
    """All families by name."""
    names = sorted(path.parent.name for path in _FOLDER.glob("*/family.py"))
    found = [importlib.import_module(f"export.families.{name}.family").FAMILY for name in names]
    return {family.name: family for family in found}


def by_alias(alias: str) -> Family | None:
    """The family with this name, alias or hub id (case-insensitive), or None."""
    wanted = alias.lower()
    for family in families().values():
        if wanted in {name.lower() for name in (family.name, *family.aliases, *family.hub_ids)}:
            return family
    return None


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder, or {} when there is none (a family may supply its own)."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}", "a JSON object", "download the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is no JSON object", "a JSON object", "download the file again")
    return value


def recognise(folder: Path) -> Family:
    """The family a checkpoint folder belongs to.

    Raises:
        UnsupportedModelError: no family knows it, or one knows it by name and does not build it.
    """
    config = read_config(folder)
    for family in families().values():
        if family.recognises(config, folder):
            return family
    raise UnsupportedModelError(
        f"{folder} is no checkpoint of a known family (model_type {config.get('model_type')!r}, "
        f"architectures {config.get('architectures')!r})",
        "one of: " + ", ".join(families()),
        "check the folder, or add a family: docs/adding_a_family.md",
    )
