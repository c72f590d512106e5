"""The decoder of every family from its configuration: sizes bounded, what is not built refused by name.

All seven families have a Llama-shaped decoder, so that one function reads them; what is a family's own (biases, scales,
adapters) it puts into the record with `dataclasses.replace`.
"""

from __future__ import annotations

from typing import Any

from export.families.config.rope import KEYS as ROPE_KEYS
from export.families.config.rope import rope_of
from export.families.config.section import Section
from export.specs import DecoderSpec
from runtime_py.errors import UnsupportedModelError

MOST_LAYERS, MOST_WIDTH, MOST_HEADS, MOST_MLP = 256, 1 << 16, 1024, 1 << 20
MOST_VOCABULARY, MOST_POSITIONS, LEAST_EPS = 1 << 22, 1 << 24, 1e-15
"""Bounds of sizes, several times what any published model has: beyond them a number is a slip or an attack."""

NESTED = ("text_config", "llm_config", "language_config")
"""Keys under which a decoder's part of config.json stands where it is a part."""

FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "bias": (False,),
    "use_qk_norm": (False,),
    "qk_norm": (False,),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "logit_scale": (1.0,),
    "logits_scaling": (1.0,),
    "embedding_multiplier": (1.0,),
    "residual_multiplier": (1.0,),
    "clip_qkv": (),
}
"""Keys that change what a decoder computes, with the values that are built."""


def language_of(config: Section) -> Section:
    """The decoder's part of a configuration: an object of its own laid over the top level, or the top level itself."""
    for key in NESTED:
        if config.has(key):
            own = config.section(key)
            rest = config.without((*NESTED, *(ROPE_KEYS if any(own.has(name) for name in ROPE_KEYS) else ())))
            return own.on_top_of(rest)
    return config


READ = "bitsandbytes"
"""The one method whose codes are read (`export.source.bitsandbytes_source`): its config says nothing that they do not."""


def refuse_quantised(config: Section, full: str) -> None:
    """Refuse a checkpoint whose stored integers are not read.

    Args:
        full: a full-precision checkpoint to name.

    Raises:
        UnsupportedModelError: with the method's name.
    """
    quantisation = config.values.get("quantization_config")
    if not quantisation or _is_read(quantisation):
        return
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
    named = method if isinstance(method, str) and len(method) < 40 else "an unnamed method"
    raise UnsupportedModelError(
        f"{config.file}: {config.path}quantization_config: weights quantised by {named!r}, which is not read",
        f"a full-precision checkpoint, e.g. {full}, or one that {READ} quantised",
        "export the full-precision one with --precision int4",
    )


def _is_read(quantisation: object) -> bool:
    """Whether bitsandbytes is the method; older files say so by what it was asked for alone.

    It may have been asked for nothing, as training scripts leave it, or the weights may be as they were: the tensors tell.
    Source: huggingface/transformers, src/transformers/quantizers/auto.py (``AutoQuantizationConfig.from_dict``).
    """
    if not isinstance(quantisation, dict):
        return False
    method = quantisation.get("quant_method")
    asked = any(key in quantisation for key in ("load_in_4bit", "load_in_8bit"))
    return method == READ or (method is None and asked)


def decoder_of(
    text: Section, vocabulary: int | None = None, axes: int = 1, kv_heads: str = "num_key_value_heads"
) -> DecoderSpec:
    """The decoder that a configuration describes.

    Args:
        text: its values over the defaults of the published class; a key without a default must be there.
        vocabulary: rows of the stored embedding table, where they come before ``vocab_size``.
        axes: axes of the rotary positions.
        kv_heads: what the family calls its number of key and value heads.

    Raises:
        CheckpointError: a size that is missing, impossible, or does not fit another.
        UnsupportedModelError: a value that is not built.
    """
    refuse_quantised(text, "the published one")
    text.only(FIXED)
    hidden = text.integer("hidden_size", 1, MOST_WIDTH)
    layers = text.integer("num_hidden_layers", 1, MOST_LAYERS)
    heads = text.integer("num_attention_heads", 1, MOST_HEADS)
    if hidden % heads or (hidden // heads) % 2:
        raise text.wrong("num_attention_heads", f"a divisor of hidden_size {hidden} that leaves an even head")
    key_heads = text.integer(kv_heads, 1, MOST_HEADS, heads)
    if heads % key_heads:
        raise text.wrong(kv_heads, f"a divisor of num_attention_heads {heads}")
    head_dim = hidden // heads
    text.only({"head_dim": (head_dim,)})
    positions = text.integer("max_position_embeddings", 1, MOST_POSITIONS)
    stated = text.integer("vocab_size", 1, MOST_VOCABULARY, vocabulary)
    return DecoderSpec(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=key_heads,
        head_dim=head_dim,
        mlp_width=text.integer("intermediate_size", 1, MOST_MLP),
        vocabulary=vocabulary or stated,
        norm_eps=text.number("rms_norm_eps", LEAST_EPS, 1.0),
        rope=rope_of(text, head_dim, axes),
        max_positions=min(positions, window_of(text, layers, positions)),
        tied_head=text.flag("tie_word_embeddings", False),
    )


def window_of(text: Section, layers: int, positions: int) -> int:
    """Positions that attention reaches in every layer; a package goes no further, and so far a window changes nothing.

    ``sliding_window`` null says that there is none where the class has one by default (Mistral). ``use_sliding_window``
    false switches it off; ``layer_types``, or ``max_window_layers``, says which layers have it (Qwen2).

    Raises:
        CheckpointError, UnsupportedModelError: see `decoder_of`.
    """
    slides = _slides(text, layers)
    window = text.integer("sliding_window", 1, MOST_POSITIONS) if text.has("sliding_window") else None
    if not text.flag("use_sliding_window", window is not None):
        window = None
    if window is None and text.has("layer_types") and slides:
        raise text.wrong("layer_types", "full_attention alone, or a sliding_window that is in use")
    return positions if window is None or not slides else window


def _slides(text: Section, layers: int) -> bool:
    """Whether any layer has the window, where there is one."""
    if not text.has("layer_types"):
        return text.integer("max_window_layers", 0, MOST_POSITIONS, 0) < layers
    kinds = text.values["layer_types"]
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise text.wrong("layer_types", f"a list of {layers} kinds of attention")
    if any(kind not in ("full_attention", "sliding_attention") for kind in kinds):
        raise text.unsupported("layer_types", "full_attention and sliding_attention")
    return "sliding_attention" in kinds
