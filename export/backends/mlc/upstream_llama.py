"""How mlc_llm names and orders the tensors of a plain Llama package; used where byte equality with it is checked.

Source: mlc-ai/mlc-llm, python/mlc_llm/loader/standard_loader.py and huggingface_loader.py (_loading_order),
python/mlc_llm/model/llama/llama_model.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.source.tensor_source import TensorSource
from export.source.weight_map import WeightMap
from export.specs import DecoderSpec, RopeSpec

_PARTS = (
    ("embed_tokens.table", "model.embed_tokens"),
    ("decoder.head", "lm_head"),
    ("decoder.norm", "model.norm"),
    ("decoder.layers.", "model.layers."),
    ("input_norm", "input_layernorm"),
    ("post_norm", "post_attention_layernorm"),
    ("attention.qkv", "self_attn.qkv_proj"),
    ("attention.out", "self_attn.o_proj"),
    ("mlp.gate_up", "mlp.gate_up_proj"),
    ("mlp.down", "mlp.down_proj"),
)


def published_name(target: str) -> str:
    """mlc_llm's name of one of our decoder parameters."""
    for ours, theirs in _PARTS:
        target = target.replace(ours, theirs)
    return target


def role(target: str) -> str:
    """The role of a decoder matrix: embedding, head or decoder."""
    return {"embed_tokens.table.weight": "embedding", "decoder.head.weight": "head"}.get(target, "decoder")


def decoder_spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder of a Hugging Face Llama config.json."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    return DecoderSpec(
        hidden=hidden,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        mlp_width=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        norm_eps=config["rms_norm_eps"],
        rope=RopeSpec(float(config.get("rope_theta") or 10000.0), head_dim),
        max_positions=config.get("max_position_embeddings") or config["max_sequence_length"],
        tied_head=bool(config.get("tie_word_embeddings", False)),
    )


def stored_order(checkpoint: Path, source: TensorSource) -> list[str]:
    """Published names in the order mlc_llm walks them: by the index file where there is one, file by file."""
    listed = read_json(checkpoint / "model.safetensors.index.json").get("weight_map")
    if not listed:
        return list(source.infos)
    files = list(dict.fromkeys(listed.values()))
    return [name for file in files for name in listed if listed[name] == file]


def loading_order(weights: WeightMap, stored: Sequence[str], tied: bool) -> list[str]:
    """Canonical parameters in the order mlc_llm writes them: each where the first of its sources stands."""
    users: dict[str, list[str]] = {}
    for rule in weights.rules.values():
        if not (tied and rule.target == "decoder.head.weight"):
            for name in rule.sources:
                users.setdefault(name, []).append(rule.target)
    return list(dict.fromkeys(target for name in stored for target in users.get(name, [])))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} when there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
