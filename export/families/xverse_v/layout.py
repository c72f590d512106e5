"""Where the three parts of XVERSE-V-13B lie in a checkpoint's folder, and how their configs become one and are written back.

Upstream keeps the settings in yaml; here they stand in a config.json beside the parts (docs/families/xverse-v.md shows one).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from export.families.config.documents import read_object
from export.families.config.section import Section
from export.families.config.settings import settings_of
from runtime_py.errors import CheckpointError

PUBLISHED: dict[str, Any] = {
    "vit_path": "clip-vit",
    "llama_model": "xverse-llm",
    "ckpt": "adapters",
    "lora_r": 128,
    "lora_alpha": 256,
    "prompt_template": "Human: {}\nAssistant: ",
    "end_sym": "<|endoftext|>",
}
"""configs/models/vxverse_13bchat.yaml upstream; config.json comes first. Paths are relative to the checkpoint folder."""

ADAPTERS_FILE = "adapter_and_lora.bin"
"""As published: a pickle whose single key "model" holds the state dict."""

MOST_NAME_BYTES, MOST_PARTS = 255, 8
"""Of one name, as Linux file systems have it, and of names in a path."""

PARTS = ("vision_config", "text_config")
"""Keys under which the parts' configs are put into the whole."""


def places_of(config: Mapping[str, Any]) -> tuple[str, str, str]:
    """Where the CLIP folder, the LLM folder and the adapters lie, relative to the checkpoint's folder.

    Raises:
        CheckpointError: a path that leads out of it.
    """
    settings = Section(config).over(PUBLISHED)
    places = []
    for key in ("vit_path", "llama_model", "ckpt"):
        path = PurePosixPath(settings.text(key))
        if path.is_absolute() or ".." in path.parts or not path.parts or not _can_be_named(path):
            raise settings.wrong(key, "a path inside the checkpoint's folder")
        places.append(str(path))
    return places[0], places[1], places[2]


def _can_be_named(path: PurePosixPath) -> bool:
    """Whether a file system takes the name: asked for another one, it answers with an OSError of its own."""
    try:
        names = [os.fsencode(part) for part in path.parts]
    except UnicodeEncodeError:
        return False
    return all(len(name) <= MOST_NAME_BYTES and b"\0" not in name for name in names) and len(names) <= MOST_PARTS


def adapters_file(config: Mapping[str, Any]) -> str:
    """The adapters' own file, in their folder unless they are named as a file."""
    place = places_of(config)[2]
    return place if place.endswith(".bin") else f"{place}/{ADAPTERS_FILE}"


def joined_config(folder: Path, own: Mapping[str, Any]) -> dict[str, Any]:
    """The whole's config with the configs of the CLIP and LLM folders put in; the whole's settings come first."""
    clip, llm, _ = (folder / place for place in places_of(own))
    parts = {"vision_config": _part(clip).section("vision_config").values or _part(clip).values}
    parts["text_config"] = _part(llm).values
    above = settings_of(folder)
    return PUBLISHED | dict(own) | parts | {key: above[key] or value for key, value in settings_of(llm).items()}


def parted_files(config: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The files of a checkpoint in one part, config.json first, as the whole's and the parts'."""
    vit, llm, _ = places_of(config)
    whole, *settings = files.items()
    return {
        whole[0]: {name: value for name, value in whole[1].items() if name not in PARTS},
        f"{vit}/config.json": {"model_type": "clip", "vision_config": config["vision_config"]},
        f"{llm}/config.json": config["text_config"],
    } | {f"{llm}/{file}": value for file, value in settings}


def _part(folder: Path) -> Section:
    """config.json of one of the parts."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing",
            "the CLIP and LLM folders beside config.json",
            "see docs/families/xverse-v.md for the layout",
        )
    return Section(read_object(path), f"{folder.name}/config.json")
