"""Manifests of schema 1, brought to the keys of schema 2; prompts of theirs are `runtime_py.prompt.undeclared`'s."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OLD, NEW = "form", "storage"
"""What a row of ``assignments`` called the storage of a layer's weights, and what it calls it now."""


def with_storages(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with ``storage`` in place of ``form`` in its assignments and in those of its backends' blocks.

    Raises:
        TypeError, AttributeError: a part is no object.
    """
    renamed = _renamed(manifest)
    if "backends" in manifest:
        renamed["backends"] = {name: _renamed(block) for name, block in manifest["backends"].items()}
    return renamed


def _renamed(part: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest, or a backend's block: both may have ``assignments``."""
    if "assignments" not in part:
        return dict(part)
    rows = {
        layer: {NEW if key == OLD else key: value for key, value in row.items()}
        for layer, row in part["assignments"].items()
    }
    return {**part, "assignments": rows}
