"""Ids of a golden's prompt marks, which a case without a tokenizer says elsewhere, where a checkpoint keeps them.

Cases made before ``added_tokens.json`` was read name them in config.json (``golden_token_ids``, ``special_token_ids``), or
nowhere: a ChatML prompt opens with its first mark, and its turns end with config.json's ``eos_token_id``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from parity_tests.golden.case import IDS, GoldenCase

FILE = "added_tokens.json"
KEYS = ("golden_token_ids", "special_token_ids")
TEXTS = {
    "im_patch_token": "<im_patch>",
    "im_start_token": "<im_start>",
    "im_end_token": "<im_end>",
    "bos": "<|begin_of_text|>",
    "eos": "<|end_of_text|>",
    "unk": "<unk>",
    "start_header": "<|start_header_id|>",
    "end_header": "<|end_header_id|>",
    "eot": "<|eot_id|>",
    "image_start": "<image>",
    "image_end": "</image>",
    "slice_start": "<slice>",
    "slice_end": "</slice>",
}
"""Text of each mark by its name in those objects."""


def with_marks(case: GoldenCase, scratch: Path) -> Path:
    """The case's checkpoint with its marks in `FILE`: the folder itself where it has one, else a copy in ``scratch``."""
    path = case.folder / "config.json"
    if (case.folder / FILE).is_file() or not path.is_file():
        return case.folder
    config = json.loads(path.read_text(encoding="utf-8"))
    marks = {TEXTS[name]: token for key in KEYS for name, token in config.get(key, {}).items()} or _chat_marks(case, config)
    if not marks:
        return case.folder
    copy = scratch / case.name
    shutil.copytree(case.folder, copy)
    (copy / FILE).write_text(json.dumps(marks), encoding="utf-8")
    return copy


def _chat_marks(case: GoldenCase, config: dict[str, Any]) -> dict[str, int]:
    if config.get("model_type") != "qwen2_vl":
        return {}
    prompt = case.inputs[case.prefixes[0] + IDS]
    return {"<|im_start|>": int(prompt.reshape(-1)[0]), "<|im_end|>": int(config["eos_token_id"])}
