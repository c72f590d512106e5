"""Prompts of packages of schema 1, written before families declared them: what their processors did by themselves.

``undeclared.json`` holds one prompt a processor and variant, as it was when schema 2 began; it does not change any more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROMPTS = Path(__file__).with_name("undeclared.json")

VARIANT_KEYS = {"minicpm_v": "variant", "cogvlm2": "template"}
"""The setting that chooses between several prompts of a processor."""

PUBLISHED_TEMPLATE = "Human: {}\nAssistant: "
"""``prompt_template`` of XVERSE-V; packages with another one must be exported again."""

MARK_KEYS = {
    "image_start": "<image>",
    "image_end": "</image>",
    "slice_start": "<slice>",
    "slice_end": "</slice>",
    "unk": "<unk>",
    "start_header": "<|start_header_id|>",
    "end_header": "<|end_header_id|>",
    "eot": "<|eot_id|>",
    "im_patch_token": "<im_patch>",
    "im_start_token": "<im_start>",
    "im_end_token": "<im_end>",
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image_pad": "<|image_pad|>",
    "video_pad": "<|video_pad|>",
}
"""Marks whose ids settings of schema 1 held, by the name of the setting."""


def with_prompt(processor: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of schema 1 with the prompt that they imply; unchanged where that is not known."""
    variant = [str(settings.get(VARIANT_KEYS[processor]))] if processor in VARIANT_KEYS else []
    known: dict[str, dict[str, Any]] = json.loads(PROMPTS.read_text(encoding="utf-8"))
    form = known.get(" ".join([processor, *variant]))
    if form is None or settings.get("prompt_template", PUBLISHED_TEMPLATE) != PUBLISHED_TEMPLATE:
        return settings
    stated = {**settings, **settings.get("tokens", {}), **settings.get("token_ids", {})}
    named = {**MARK_KEYS, "bos": form["begin"], "pad": form["picture"]["row"]}
    marks = {mark: stated[name] for name, mark in named.items() if mark and isinstance(stated.get(name), int)}
    return {**settings, "prompt": {**form, "marks": marks}}
