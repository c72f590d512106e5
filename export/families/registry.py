"""Families by folder scan and by entry point, and the family of a checkpoint.

A folder under export/families that has a ``family.py`` with a ``FAMILY`` object is one; so is every object that an
installed distribution names in the entry point group ``edgeproof.families``.
"""

from __future__ import annotations

import importlib
import logging
import shlex
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from export.families.base import Family
from export.families.config.decoder import refuse_quantised
from export.families.config.documents import read_optional
from export.families.config.section import Section, shown
from export.source.adapter_folder import refuse_adapter
from export.source.problems import named
from export.source.weight_endings import converted, what_to_name
from runtime_py.errors import EdgeproofError, UnsupportedModelError, UsageError
from runtime_py.package.reading import MANIFEST

GROUP = "edgeproof.families"
"""Entry points of other distributions: ``name = package.module:FAMILY``."""

_FOLDER = Path(__file__).parent
_LOG = logging.getLogger(__name__)


@cache
def families() -> dict[str, Family]:
    """All families by name: our own in the order of their folders, then those of other distributions by name."""
    names = sorted(path.parent.name for path in _FOLDER.glob("*/family.py"))
    records = [importlib.import_module(f"export.families.{name}.family").FAMILY for name in names]
    known = {family.name: family for family in records}
    for family in _foreign():
        if family.name in known:
            _LOG.warning("a distribution offers a second family '%s', which is not used", family.name)
        known.setdefault(family.name, family)
    return known


def _foreign() -> list[Family]:
    """Families of other distributions; one that cannot be imported is said and left out."""
    families_outside = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            family = point.load()
        except Exception as error:  # whatever another distribution's import raises
            _LOG.warning("the family '%s' cannot be loaded from %s: %s", point.name, point.value, error)
            continue
        if isinstance(family, Family):
            families_outside.append(family)
        else:
            _LOG.warning("%s is no Family (entry point '%s')", point.value, point.name)
    return families_outside


WITHIN = ("*", "snapshots/*", "models--*/snapshots/*", "hub/models--*/snapshots/*")
SHOWN = 3
"""Folders that an error names."""


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder, or {} when there is none (a family may supply its own).

    Raises:
        CheckpointError: it is no JSON object.
    """
    return read_optional(folder / "config.json")


def recognise(folder: Path) -> Family:
    """As `family_of`, of a folder whose config.json nobody has read yet."""
    return family_of(folder, read_config(folder))


def family_of(folder: Path, config: Mapping[str, Any]) -> Family:
    """The family a checkpoint folder belongs to.

    Args:
        config: what its config.json says.

    Raises:
        UnsupportedModelError: no family knows it, or one knows it by name and does not build it.
        CheckpointError: it is one whose values were quantised.
        UsageError: there is no such folder.
    """
    refusal: EdgeproofError | None = None
    for family in families().values():
        try:
            if _asked(family, config, folder):
                refuse_quantised(Section(config), family.hub_ids[0])
                return family
        except EdgeproofError as error:
            refusal = refusal or error
    if refusal is not None:
        raise refusal
    if not folder.is_dir():
        raise UsageError(
            f"{folder}: there is no such folder", "a checkpoint's folder, with its config.json", "check the path"
        )
    if not config:
        refuse_adapter(folder)
    model_type, architectures = (shown(config.get(name)) for name in ("model_type", "architectures"))
    made = converted(sorted(path.name for path in folder.iterdir()))
    if made and not config:
        raise UnsupportedModelError(
            f"{folder} holds {named(made)} and no config.json, or an empty one",
            "the folder of a checkpoint",
            what_to_name(made),
        )
    inside = [] if config else checkpoints_within(folder)
    if inside:
        raise UsageError(
            f"{folder} has no config.json, or an empty one; a folder within has one",
            "the folder of a checkpoint: config.json, weights, the tokenizer's files",
            "name " + " or ".join(shlex.quote(str(place)) for place in inside),
        )
    said = f"model_type {model_type}, architectures {architectures}" if config else "no config.json, or an empty one"
    raise UnsupportedModelError(
        f"{folder} is no checkpoint of a known family ({said})",
        "one of: " + ", ".join(families()),
        "check the folder, or add a family: docs/adding_a_family.md",
    )


def checkpoints_within(folder: Path) -> list[Path]:
    """Folders of checkpoints of known families where people look past them: a level deeper, or in the hub's cache
    (huggingface/huggingface_hub, docs/source/en/guides/manage-cache.md); at most `SHOWN`. Packages are none.
    """
    found: list[Path] = []
    for pattern in WITHIN:
        for place in sorted(path.parent for path in folder.glob(f"{pattern}/config.json")):
            with suppress(EdgeproofError):
                config = read_config(place)
                package = (place / MANIFEST).exists()
                if config and not package and len(found) < SHOWN and family_of(place, config):
                    found.append(place)
    return found


def _asked(family: Family, config: Mapping[str, Any], folder: Path) -> bool:
    """What a family says of a checkpoint; a fault of one family is logged and is no answer for the others."""
    try:
        return family.recognises(config, folder)
    except EdgeproofError:
        raise
    except Exception:  # a family may come from anywhere
        _LOG.warning("the family '%s' fails on the config.json of %s", family.name, folder, exc_info=True)
        return False
