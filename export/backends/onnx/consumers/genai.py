"""genai_config.json: what onnxruntime-genai must know of a package.

Models of Qwen2-VL's kind are a type of their own, ``qwen2_5_vl``. For the others the type ``gemma3`` serves, whose pipeline
is plain: pixels to rows, rows into the embeddings, a decoder over them. Its picture processors fit no model here: pixel
values and ids come from `runtime_py` (docs/targets/onnx_tools.md has the lines).
Source: microsoft/onnxruntime-genai, src/config.cpp, src/models/model_type.h.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from export.backends.onnx.consumers.held import placeholder, tower_by_grid
from export.specs import ModelSpec
from targets.base import Limits

CONFIG = "genai_config.json"
PLAIN, GRIDS = "gemma3", "qwen2_5_vl"


def genai_config(
    spec: ModelSpec, limits: Limits, graphs: Mapping[str, str], cache_width: int, tokens: Mapping[str, Any]
) -> dict[str, Any]:
    """The whole file.

    Args:
        graphs: paths in the package of the graphs ``pictures``, ``embedding`` and ``last_logits``.
        cache_width: of a head in the cache.
        tokens: config.json with ``bos_token_id`` and ``pad_token_id``, where the checkpoint says them.
    """
    decoder, generation = spec.decoder, spec.generation
    stops = list(generation["stop_ids"])
    sampled = generation["temperature"] > 0
    return {
        "model": {
            "type": GRIDS if tower_by_grid(spec) else PLAIN,
            "bos_token_id": _first(tokens.get("bos_token_id"), stops[0]),
            "eos_token_id": stops,
            "pad_token_id": _unused(spec, [_first(tokens.get("pad_token_id"), stops[0]), *stops]),
            "vocab_size": decoder.vocabulary,
            "context_length": limits.context,
            **_marks(spec),
            "vision": {"filename": graphs["pictures"], **_pictures(spec), "outputs": {"image_features": "image_features"}},
            "embedding": {
                "filename": graphs["embedding"],
                "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
                "outputs": {"inputs_embeds": "inputs_embeds"},
            },
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": graphs["last_logits"],
                "hidden_size": decoder.hidden,
                "num_hidden_layers": decoder.layers,
                "num_attention_heads": decoder.heads,
                "num_key_value_heads": decoder.kv_heads,
                "head_size": cache_width,
                "inputs": {
                    "inputs_embeds": "inputs_embeds",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": sampled,
            "max_length": limits.context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            # a cache that grows in place: every decoder here attends through GroupQueryAttention
            "past_present_share_buffer": True,
            "repetition_penalty": generation["repetition_penalty"],
            "temperature": generation["temperature"] if sampled else 1.0,
            "top_k": generation["top_k"] if sampled else 1,
            "top_p": generation["top_p"] if sampled else 1.0,
        },
    }


def _unused(spec: ModelSpec, wanted: Sequence[int]) -> int:
    """The first of some ids that stands in no prompt, else the last of the table: attention never sees a padding id."""
    prompt = dict(spec.runtime["prompt"])
    marks = prompt.pop("marks")
    prompt.pop("stop", None)
    form = json.dumps(prompt, ensure_ascii=False)
    used = {number for mark, number in marks.items() if mark in form} | {placeholder(spec)}
    return next((number for number in wanted if number not in used), spec.decoder.vocabulary - 1)


def _marks(spec: ModelSpec) -> dict[str, int]:
    """The ids that places of pictures are counted by, where positions depend on them."""
    if not tower_by_grid(spec):
        return {}
    marks = spec.runtime["prompt"]["marks"]
    named = {"vision_start_token_id": "<|vision_start|>", "video_token_id": "<|video_pad|>"}
    return {"image_token_id": placeholder(spec)} | {key: marks[mark] for key, mark in named.items() if mark in marks}


def _pictures(spec: ModelSpec) -> dict[str, Any]:
    tower = tower_by_grid(spec)
    if tower is None:
        return {"inputs": {"pixel_values": "pixel_values"}}
    return {
        "inputs": {"pixel_values": "pixel_values", "image_grid_thw": "image_grid_thw"},
        "spatial_merge_size": tower.merge,
        "patch_size": spec.image.patch,
    }


def _first(value: Any, otherwise: int) -> int:
    """A token id that may be missing, or one of several."""
    if isinstance(value, list):
        value = value[0] if value else None
    return otherwise if value is None else int(value)
