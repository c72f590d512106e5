"""The tiny Awaker2.5-VL: base and routed LoRA experts in one pickle, a Qwen2-VL tower, M-RoPE.

Alive are: the prefix of every key, LoRA folded into q, k and v, two gates a layer whose input is the mean embedding of the
first user turn (with image rows in prefill, without in decode), one of four experts by the gate and a shared one, gate
logits rounded to float16, dynamic resolution, 2-D rotary positions in the tower, patches in merge order, three position
axes in the decoder, biases on q, k and v.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from export.demo.byte_vocabulary import QWEN2_WORDS, ByteLayout, tokenizer_json
from export.demo.questions import corpus
from export.demo.recipes.base import SHAPES_ALONE, Places, Recipe, Tensors, grid_middles, json_files, licence_file
from export.families.awaker2_5_vl.weights import PREFIX
from export.families.qwen2_vl.prompt import SYSTEM
from export.specs import ModelSpec
from runtime_py.preprocess.base import ImageInputs
from runtime_py.preprocess.patches import smart_resize

IMAGE, PATCH, MERGE, HIDDEN = 84, 14, 2, 128
SIDE, CELL = IMAGE // PATCH, PATCH * MERGE
PIXELS = {"min_pixels": 4 * CELL * CELL, "max_pixels": IMAGE * IMAGE}

SPECIAL: tuple[str, ...] = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
)
SPECIAL += ("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
SPECIAL += ("<|image_pad|>", "<|video_pad|>")
VOCABULARY = ByteLayout(QWEN2_WORDS, 688, SPECIAL, composed=True)
"""Qwen/Qwen2-VL-7B-Instruct, tokenizer_config.json: the order of its special tokens from 151643 on."""

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": VOCABULARY.special_id("<|endoftext|>"),
    "eos_token_id": VOCABULARY.special_id("<|im_end|>"),
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "image_token_id": VOCABULARY.special_id("<|image_pad|>"),
    "initializer_range": 0.02,
    "intermediate_size": 320,
    "max_position_embeddings": 2048,
    "max_window_layers": 3,
    "model_type": "qwen2_vl",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "video_token_id": VOCABULARY.special_id("<|video_pad|>"),
    "vision_config": {
        "depth": 3,
        "embed_dim": 96,
        "hidden_size": HIDDEN,
        "in_chans": 3,
        "mlp_ratio": 2.5,
        "num_heads": 3,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "spatial_patch_size": PATCH,
        "temporal_patch_size": 2,
    },
    "vision_end_token_id": VOCABULARY.special_id("<|vision_end|>"),
    "vision_start_token_id": VOCABULARY.special_id("<|vision_start|>"),
    "vision_token_id": VOCABULARY.special_id("<|vision_pad|>"),
    "vocab_size": VOCABULARY.size,
}
MARKS = {text: VOCABULARY.special_id(text) for text in ("<|im_start|>", "<|im_end|>")}
MOE = {"r": 4, "lora_alpha": 8, "num_experts": 4}


@cache
def tokenizer_file() -> bytes:
    return tokenizer_json([*corpus(), *[f"system\n{SYSTEM}", "user\n", "assistant\n"] * 200], VOCABULARY)


def side_files() -> dict[str, bytes]:
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    preprocessor = {**PIXELS, "patch_size": PATCH, "temporal_patch_size": 2, "merge_size": MERGE}
    documents = {
        "config.json": CONFIG,
        "moe_config.json": MOE,
        "preprocessor_config.json": preprocessor,
        "generation_config.json": {name: CONFIG[name] for name in ("bos_token_id", "eos_token_id")},
        "special_tokens_map.json": special,
        "tokenizer_config.json": {**special, "model_max_length": 2048, "tokenizer_class": "Qwen2Tokenizer"},
    }
    return {**json_files(documents), "tokenizer.json": tokenizer_file(), **licence_file("Awaker2.5-VL")}


def file_of(name: str) -> tuple[str, str]:
    return "pytorch_model.bin", name


def initialise(tensors: Tensors, spec: ModelSpec) -> None:
    """Deltas that begin at nothing, and gates that part the requests from the start."""
    for name, value in tensors.items():
        if ".lora_B." in name or ".lora_moe_B." in name:
            value.zero_()
        elif name.endswith("w_gate.weight"):
            value.mul_(3.0)
        elif name == f"{PREFIX}visual.patch_embed.proj.weight":
            value.mul_(0.7)


def shape_of(width: int, height: int) -> tuple[int, ...]:
    high, wide = smart_resize(height, width, CELL, PIXELS["min_pixels"], PIXELS["max_pixels"])
    return (high // CELL) * (wide // CELL), high // PATCH, wide // PATCH


def places(inputs: ImageInputs, size: tuple[int, int]) -> Places:
    """Patches in blocks of merge x merge, and the blocks."""
    _, rows, columns = shape_of(*size)
    blocks = grid_middles(rows, columns).reshape(rows // MERGE, MERGE, columns // MERGE, MERGE, 2)
    return Places(blocks.transpose(0, 2, 1, 3, 4).reshape(-1, 2), grid_middles(rows // MERGE, columns // MERGE))


RECIPE = Recipe(
    family="awaker2.5-vl",
    config={**CONFIG, "moe": MOE, "preprocessor": PIXELS, "added_tokens": MARKS},
    side=IMAGE,
    patches=(SIDE, SIDE),
    rows=(SIDE // MERGE, SIDE // MERGE),
    fixed=(),
    initialise=initialise,
    side_files=side_files,
    stop="<|im_end|>",
    places=places,
    shape_of=shape_of,
    file_of=file_of,
    start={"vision_encoder": "minicpm-v", "decoder": "minicpm-v"},
    digits=False,
    plan={**SHAPES_ALONE, "again": 1100, "positions": 0.45},
)
