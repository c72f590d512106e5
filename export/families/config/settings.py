"""The settings files beside config.json, under one key each of the config that a family reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.families.config.documents import read_optional
from export.families.config.section import Section
from export.families.config.vocabulary import FILE as TOKENS_FILE
from export.families.config.vocabulary import ROLES, ROLES_FILE, TOKENS, added_tokens, named_end

GENERATION, PICTURES, CLIPS = "generation_config", "preprocessor", "video_preprocessor"

SETTINGS = {
    GENERATION: "generation_config.json",
    PICTURES: "preprocessor_config.json",
    CLIPS: "video_preprocessor_config.json",
    TOKENS: TOKENS_FILE,
    ROLES: ROLES_FILE,
}
"""Key of a family's config to the file that it is written to."""


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings of one folder by the keys of `SETTINGS`; a file that is missing leaves an empty object.

    Raises:
        CheckpointError: a file that is no JSON object, or a table of tokens that is none.
    """
    return {
        GENERATION: read_optional(folder / SETTINGS[GENERATION]),
        PICTURES: _preprocessing(folder, "image_processor", PICTURES),
        CLIPS: _preprocessing(folder, "video_processor", CLIPS),
        TOKENS: added_tokens(folder),
        ROLES: named_end(folder),
    }


def _preprocessing(folder: Path, key: str, kind: str) -> Mapping[str, Any]:
    """What a processor is made from: transformers 5 keeps it in processor_config.json, and looks there first."""
    nested = Section(read_optional(folder / "processor_config.json"), "processor_config.json").section(key)
    return nested.values or read_optional(folder / SETTINGS[kind])
