"""mlc-chat-config.json: what the MLC runtime must know about a model beside its weights.

Keys, their order and the defaults follow mlc-ai/mlc-llm, python/mlc_llm/protocol/mlc_chat_config.py and
interface/gen_config.py. The parts that are worked out are elsewhere: `conversation_template`, `tokenizer_files`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from export.specs import DecoderSpec
from runtime_py.backends.stock_engine import SentPicture
from targets.base import Limits

SAMPLING_DEFAULTS = {
    "temperature": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "top_p": 1.0,
}
TOKEN_DEFAULTS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GENERATION_DEFAULTS = {**SAMPLING_DEFAULTS, **TOKEN_DEFAULTS}
"""Upstream's values of fields that neither generation_config.json nor config.json gives."""


@dataclass(frozen=True)
class ChatRequest:
    """What chat_config needs beside the decoder.

    Attributes:
        generation: generation fields by MLC's names; missing ones get GENERATION_DEFAULTS.
        conversation: the conversation template as a JSON object.
        active_vocabulary: tokens that the tokenizer knows.
        extra: further fields of ``model_config``, e.g. ``vision_config``.
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
    given = {key: value for key, value in request.generation.items() if value is not None}
    limits = request.limits
    return {
        "version": "0.1.0",  # of this file's form in mlc_llm, not of ours
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
        **{key: float(given.get(key, default)) for key, default in SAMPLING_DEFAULTS.items()},
        "tokenizer_files": list(request.tokenizer_files),
        "tokenizer_info": dict(request.tokenizer_info),
        "conv_template": dict(request.conversation),
        **{key: given.get(key, default) for key, default in TOKEN_DEFAULTS.items()},
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


def vision_config(sent: SentPicture | None) -> dict[str, dict[str, int]]:
    """The field of ``model_config`` from which the engine knows the size of a picture and counts its rows.

    Without it the engine answers a message with a picture by an error (mlc-llm, cpp/json_ffi/conv_template.cc).
    """
    return {"vision_config": {"image_size": sent.image_size, "patch_size": sent.patch_size}} if sent else {}


def generation(stored: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """The generation fields of a package.

    Args:
        stored: config.json with generation_config.json over it.
        ours: the family's defaults (`ModelSpec.generation`), whose sampling and stop ids come first.
    """
    sampled = bool(ours.get("temperature"))
    settings = {key: stored.get(key) for key in GENERATION_DEFAULTS}
    settings |= {"temperature": ours.get("temperature", 0.0), "top_p": ours.get("top_p", 1.0) if sampled else 1.0}
    settings["repetition_penalty"] = ours.get("repetition_penalty", 1.0)
    if settings["eos_token_id"] is None:
        settings["eos_token_id"] = ours["stop_ids"][0]
    return settings
