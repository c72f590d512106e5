"""mlc-chat-config.json: what the MLC runtime must know about a model beside its weights.

Keys, their order and the defaults follow mlc-ai/mlc-llm, python/mlc_llm/protocol/mlc_chat_config.py and
interface/gen_config.py; the tokenizer rules are cpp/tokenizers/tokenizers.cc (DetectTokenizerInfo).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.specs import DecoderSpec
from runtime_py.errors import CheckpointError
from targets.base import Limits

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer_config.json",
)
GENERATION_DEFAULTS = {
    "temperature": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "top_p": 1.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class ChatRequest:
    """What chat_config needs beside the decoder.

    Attributes:
        generation: generation fields by MLC's names; missing ones get GENERATION_DEFAULTS.
        extra: further fields of ``model_config``, e.g. ``vision_config``.
        conversation: the conversation template as a JSON object.
    """

    model_type: str
    quantization: str
    limits: Limits
    generation: Mapping[str, Any]
    conversation: Mapping[str, Any]
    tokenizer_files: tuple[str, ...]
    tokenizer_info: Mapping[str, Any]
    active_vocabulary: int
    extra: Mapping[str, Any]


def chat_config(decoder: DecoderSpec, request: ChatRequest) -> dict[str, Any]:
    """The object, keys in upstream's order."""
    values = {**GENERATION_DEFAULTS, **{k: v for k, v in request.generation.items() if v is not None}}
    limits = request.limits
    return {
        "version": "0.1.0",
        "model_type": request.model_type,
        "quantization": request.quantization,
        "model_config": {**model_config(decoder, limits), **request.extra},
        "vocab_size": decoder.vocabulary,
        "context_window_size": limits.context,
        "sliding_window_size": -1,
        "prefill_chunk_size": limits.prefill_chunk,
        "attention_sink_size": -1,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "active_vocab_size": request.active_vocabulary,
        **{key: float(values[key]) for key in list(GENERATION_DEFAULTS)[:5]},
        "tokenizer_files": list(request.tokenizer_files),
        "tokenizer_info": dict(request.tokenizer_info),
        "conv_template": dict(request.conversation),
        **{key: values[key] for key in list(GENERATION_DEFAULTS)[5:]},
        "model_task": "chat",
        "embedding_metadata": None,
    }


def model_config(decoder: DecoderSpec, limits: Limits) -> dict[str, Any]:
    """The decoder's sizes under the names of mlc_llm's Llama configuration."""
    return {
        "hidden_size": decoder.hidden,
        "intermediate_size": decoder.mlp_width,
        "num_attention_heads": decoder.heads,
        "num_hidden_layers": decoder.layers,
        "rms_norm_eps": decoder.norm_eps,
        "vocab_size": decoder.vocabulary,
        "tie_word_embeddings": decoder.tied_head,
        "position_embedding_base": decoder.rope.theta,
        "rope_scaling": None,
        "context_window_size": limits.context,
        "prefill_chunk_size": limits.prefill_chunk,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "max_batch_size": limits.batch,
        "disaggregation": False,
    }


def vision_config(image_size: int, rows: int) -> dict[str, int]:
    """``image_size`` and the ``patch_size`` from which the phone's runtime counts ``rows`` rows of one picture.

    It takes image_size^2 / patch_size^2 (mlc-llm, cpp/json_ffi/conv_template.cc), so a resampler's output is described
    by a coarser patch than the tower's own. {} when no whole patch size gives that count.
    """
    side = math.isqrt(rows)
    if side * side != rows or image_size % side:
        return {}
    return {"image_size": image_size, "patch_size": image_size // side}


def tokenizer_info(folder: Path) -> dict[str, Any]:
    """How the runtime turns tokens back into text, read from ``folder``/tokenizer.json; defaults when it is missing."""
    found = {"token_postproc_method": "byte_fallback", "prepend_space_in_encode": False, "strip_space_in_decode": False}
    path = folder / "tokenizer.json"
    if not path.is_file():
        return found
    value = json.loads(path.read_text(encoding="utf-8"))
    for kind in (step["type"] for step in _steps(value.get("decoder"), "decoders")):
        if kind in ("ByteLevel", "ByteFallback"):
            found["token_postproc_method"] = "byte_level" if kind == "ByteLevel" else "byte_fallback"
            break
    normalisers = _steps(value.get("normalizer"), "normalizers")
    found["prepend_space_in_encode"] = any(step["type"] == "Prepend" and step.get("prepend") == "▁" for step in normalisers)
    found["strip_space_in_decode"] = any(
        step["type"] == "Strip" and step.get("content") == " " and step.get("start") == 1 and step.get("stop") == 0
        for step in _steps(value.get("decoder"), "decoders")
    )
    return found


def _steps(value: Any, key: str) -> list[dict[str, Any]]:
    if not isinstance(value, dict):
        return []
    return value[key] if value.get("type") == "Sequence" else [value]


def active_vocabulary(folder: Path, default: int) -> int:
    """Tokens that ``folder``/tokenizer.json knows, added ones included.

    Raises:
        CheckpointError: two added tokens have the same text, which breaks the phone's tokenizer.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return default
    contents = [token["content"] for token in json.loads(path.read_text(encoding="utf-8")).get("added_tokens", [])]
    twice = sorted({content for content in contents if contents.count(content) > 1})
    if twice:
        raise CheckpointError(
            f"{path.name} lists added tokens twice: {', '.join(twice)}",
            "every added token once",
            "remove the duplicates from the checkpoint's tokenizer.json",
        )
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path)).get_vocab_size(with_added_tokens=True)


def copy_tokenizer(checkpoint: Path, folder: Path) -> list[str]:
    """Copy the checkpoint's tokenizer files and make tokenizer.json where only another form exists.

    Returns:
        their names in upstream's order, a made tokenizer.json last.
    """
    names = [name for name in TOKENIZER_FILES if (checkpoint / name).is_file()]
    for name in names:
        partial = folder / (name + ".partial")
        shutil.copyfile(checkpoint / name, partial)
        partial.replace(folder / name)
    if "tokenizer.json" not in names and names:
        from export.package.tokenizer_json import ensure_tokenizer_json

        ensure_tokenizer_json(checkpoint, folder / "tokenizer.json")
        names.append("tokenizer.json")
    return names


def plain_template(name: str, stop_ids: list[int]) -> dict[str, Any]:
    """A template that puts nothing around the text, with every key of mlc_llm's Conversation in its order."""
    return {
        "name": name,
        "system_template": "{system_message}",
        "system_message": "",
        "system_prefix_token_ids": None,
        "add_role_after_system_message": True,
        "roles": {"user": "", "assistant": "", "tool": ""},
        "role_templates": {"user": "{user_message}", "assistant": "{assistant_message}", "tool": "{tool_message}"},
        "messages": [],
        "seps": [""],
        "role_content_sep": "",
        "role_empty_sep": "",
        "stop_str": [],
        "stop_token_ids": stop_ids,
        "strip_reasoning_in_history": False,
        "function_string": "",
        "use_function_calling": False,
    }
