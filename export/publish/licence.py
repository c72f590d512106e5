"""A package's licence in the hub's words: an identifier that the hub knows, or ``other`` with a name and a link.

Source of the fields: huggingface/hub-docs, docs/hub/model-cards.md and docs/hub/repositories-licenses.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

KNOWN = {"apache-2.0": "apache-2.0", "mit": "mit"}
"""Licences that a family states alone, to the hub's identifiers; a licence of several parts is ``other``."""


@dataclass(frozen=True)
class HubLicence:
    """The fields of a card.

    Attributes:
        license: identifier.
        name: of one that the hub does not know, in small letters and hyphens; None for one that it knows.
        link: its text, a file of the repository or an address.
    """

    license: str
    name: str | None = None
    link: str | None = None


def hub_licence(stated: str, family: str, files: Sequence[str], base: str | None) -> HubLicence:
    """The licence of a package.

    Args:
        stated: as the manifest has it.
        files: licence files in the package.
        base: hub id of the checkpoint, or None.
    """
    known = KNOWN.get(stated.strip().lower())
    if known is not None:
        return HubLicence(known)
    name = re.sub(r"[^a-z0-9.]+", "-", family.lower()).strip("-")
    link = files[0] if files else (f"https://huggingface.co/{base}" if base else None)
    return HubLicence("other", f"{name}-model-license", link)
