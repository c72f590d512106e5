"""The settings files that a package carries, without what names code that does not travel.

``auto_map`` says in which Python file beside a config the published classes are. Code is never copied, so in a package it
would send every reader of the config to a file that is not there; transformers 5 asks for it before it opens a tokenizer. An
entry of the form ``REPOSITORY--module.Class`` names code on the hub and stays.

``quantization_config`` says how a checkpoint's weights are stored, which no package's are.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.source.side_files import Purpose
from runtime_py.errors import CheckpointError
from runtime_py.files.json_file import MEGABYTE, parse_json

MAP, STORED = "auto_map", "quantization_config"
ELSEWHERE = "--"

PURPOSES = (Purpose.CONFIG, Purpose.GENERATION, Purpose.PICTURES)


def carried(content: bytes, path: Path) -> bytes:
    """What a package holds of a settings file: its bytes as they are unless its ``auto_map`` names files beside it, or it
    says how the checkpoint's weights are quantised.

    A byte order mark stays behind: other readers of the package do not read over it.

    Raises:
        CheckpointError: it is no JSON.
    """
    content = content.removeprefix(codecs.BOM_UTF8)
    if not any(key.encode() in content for key in (MAP, STORED)) or len(content) > 16 * MEGABYTE:
        return content
    value = parse_json(content, path, CheckpointError, "download the file again")
    kept = _of_a_package(value)
    return content if kept == value else (json.dumps(kept, ensure_ascii=False, indent=2) + "\n").encode()


def _of_a_package(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    own = {key: _of_a_package(item) for key, item in value.items() if key not in (MAP, STORED)}
    classes = value.get(MAP)
    if isinstance(classes, Mapping):
        elsewhere = {name: place for name, place in classes.items() if ELSEWHERE in json.dumps(place)}
        return {key: own.get(key, elsewhere) for key in value if key in own or (key == MAP and elsewhere)}
    return own
