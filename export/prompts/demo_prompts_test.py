"""Prompts of the demo checkpoints stay, id for id, what they were before prompts were declared as data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.checkpoint.recognised import recognise_checkpoint
from export.prompts.conftest import DEMOS
from runtime_py import tokenizer
from runtime_py.preprocess.base import Message
from runtime_py.preprocess.processors import make_processor
from runtime_py.prompt.undeclared import with_prompt

TALKS = {
    "text": [Message("user", "What color is the circle?")],
    "picture": [Message("user", "What color is the circle?", (0,))],
    "three turns": [
        Message("user", "How many shapes are there?", (0,)),
        Message("assistant", "3"),
        Message("user", "星形在哪里？"),
    ],
    "text turns": [
        Message("user", "这是什么形状？"),
        Message("assistant", "an orange triangle"),
        Message("user", "Describe the picture.\nWhere?"),
    ],
}

RECORDED: dict[str, dict[str, Any]] = {
    "awaker2.5-vl": {
        "text": (25, "fabd408c5c2a6490"),
        "picture": (33, "128ef7a37ae3d158"),
        "three turns": (47, "ac4b345552b3499f"),
        "text turns": (43, "696e58a470b4a013"),
        "stop": (676, 674),
    },
    "cogvlm2": {
        "text": (15, "ed52b221dba18e66"),
        "picture": (26, "9a2d175373a50bef"),
        "three turns": (40, "aa8564bfb79aff3a"),
        "text turns": (32, "e770daa2a34c98f8"),
        "stop": (695,),
    },
    "minicpm-v": {
        "text": (13, "23f96eeee4ce191f"),
        "picture": (25, "429750927dfb321a"),
        "three turns": (36, "cf0c9a9dd14e1669"),
        "text turns": (28, "2115861ee16d7561"),
        "stop": (2,),
    },
    "omnilmm-12b": {
        "text": (57, "d5d2f9041a87efca"),
        "picture": (70, "9e5a8c27adc64dc9"),
        "three turns": (93, "83815bd2c8466bca"),
        "text turns": (87, "051ac48f73ec32a7"),
        "stop": (2,),
    },
    "wemm": {
        "text": (14, "f04a041218423ec9"),
        "picture": (16, "aeb469233384d346"),
        "three turns": (29, "447d524eaf2e033e"),
        "text turns": (35, "fc5c7280573b2623"),
        "stop": (2, 622),
    },
    "xverse-v": {
        "text": (13, "15d445db7cd482f0"),
        "picture": (15, "e5246a1c20792841"),
        "three turns": (28, "77c08feab7dea595"),
        "text turns": (29, "cfa8e7770262ef26"),
        "stop": (2, 3),
    },
}
"""Number of ids and the start of their digest, of each conversation, as written at commit 39bb49f; and the stop ids."""


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("name", RECORDED)
def test_prompts_of_the_demo_are_what_they_were(name: str, schema: int) -> None:
    folder = DEMOS / name
    checkpoint = recognise_checkpoint(folder)
    family, spec, words = checkpoint.family, checkpoint.spec(checkpoint.open_source()), tokenizer.load(folder)
    settings: Mapping[str, Any] = spec.runtime
    if schema == 1:
        settings = with_prompt(family.processor, {key: value for key, value in settings.items() if key != "prompt"})
    processor = make_processor(family.processor, settings, words)
    picture = np.asarray(Image.open(DEMOS.parent / "samples" / "shapes.png").convert("RGB"))
    for talk, messages in TALKS.items():
        images = processor.images([picture]) if any(message.images for message in messages) else []
        ids = processor.encode(messages, images)[0].tolist()
        assert (len(ids), hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]) == RECORDED[name][talk], talk
    assert tuple(spec.generation["stop_ids"]) == RECORDED[name]["stop"]
