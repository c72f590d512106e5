"""The tiny CogVLM2 (image, chat): an EVA2-CLIP tower, a 2 x 2 convolution and GLU, and visual experts.

Alive are: norms on the branch outputs, a class row that is emitted and dropped by the connector, boi and eoi rows, a second
weight set for vision tokens (biased qkv), one position for all patches with another cache index for each, rotary
frequencies stored in bfloat16, grouped queries, the prompt without turns' end tokens, ids at the vocabulary's end.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from export.demo.byte_vocabulary import LLAMA3_WORDS, ByteLayout, tokenizer_json
from export.demo.questions import corpus
from export.demo.recipes.base import (
    NOWHERE,
    Places,
    Recipe,
    Tensors,
    grid_middles,
    json_files,
    licence_file,
    sine_positions,
)
from export.specs import ModelSpec
from runtime_py.preprocess.base import ImageInputs

IMAGE, PATCH, HIDDEN, HEADS = 84, 14, 128, 4
SIDE = IMAGE // PATCH

SPECIAL: tuple[str, ...] = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
)
SPECIAL += ("<|reserved_special_token_2|>", "<|reserved_special_token_3|>", "<|start_header_id|>", "<|end_header_id|>")
SPECIAL += ("<|reserved_special_token_4|>", "<|eot_id|>")
VOCABULARY = ByteLayout(LLAMA3_WORDS, 704, SPECIAL, composed=False)
"""meta-llama/Meta-Llama-3-8B, tokenizer.json: the order of its special tokens from 128000 on."""

CONFIG: dict[str, Any] = {
    "architectures": ["CogVLMForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_cogvlm.CogVLMConfig",
        "AutoModelForCausalLM": "modeling_cogvlm.CogVLMForCausalLM",
    },
    "bos_token_id": VOCABULARY.special_id("<|begin_of_text|>"),
    "eos_token_id": VOCABULARY.special_id("<|end_of_text|>"),
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": 224,
    "max_position_embeddings": 2048,
    "num_attention_heads": HEADS,
    "num_hidden_layers": 3,
    "num_multi_query_heads": 2,
    "pad_token_id": VOCABULARY.special_id("<|reserved_special_token_0|>"),
    "rms_norm_eps": 1e-05,
    "template_version": "chat",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.0",
    "use_cache": True,
    "vision_config": {
        "dropout_prob": 0.0,
        "hidden_act": "gelu",
        "hidden_size": 96,
        "image_size": IMAGE,
        "in_channels": 3,
        "intermediate_size": 256,
        "layer_norm_eps": 1e-06,
        "num_heads": 3,
        "num_hidden_layers": 3,
        "num_positions": SIDE * SIDE + 1,
        "patch_size": PATCH,
    },
    "vocab_size": VOCABULARY.size,
}


@cache
def tokenizer_file() -> bytes:
    return tokenizer_json([*corpus(), *[" " + text for text in corpus()], "Question:", " Answer:"], VOCABULARY)


def side_files() -> dict[str, bytes]:
    special = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    documents = {
        "config.json": CONFIG,
        "generation_config.json": {name: CONFIG[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "special_tokens_map.json": special,
        "tokenizer_config.json": {**special, "model_max_length": 2048, "tokenizer_class": "PreTrainedTokenizerFast"},
    }
    return {**json_files(documents), "tokenizer.json": tokenizer_file(), **licence_file("CogVLM2")}


def initialise(tensors: Tensors, spec: ModelSpec) -> None:
    """Sine positions, quiet branch outputs, and the rotary frequencies as every layer stores them."""
    table = tensors["model.vision.patch_embedding.position_embedding.weight"]
    table[0] = 0.0
    table[1:] = sine_positions(SIDE, SIDE, spec.vision.width)
    tensors["model.vision.patch_embedding.cls_embedding"].mul_(0.02)
    turns = torch.arange(0, spec.decoder.rope.dim, 2).float() / spec.decoder.rope.dim
    frequencies = (spec.decoder.rope.theta**-turns).to(torch.bfloat16).float()
    for name, value in tensors.items():
        if name.endswith("rotary_emb.inv_freq"):
            value.copy_(frequencies)
        elif name.startswith("model.vision.transformer") and name.endswith("layernorm.weight"):
            value.fill_(0.5)


def places(inputs: ImageInputs, size: tuple[int, int]) -> Places:
    """The class row, then the patches; boi, the windows, eoi."""
    middles = grid_middles(SIDE // 2, SIDE // 2)
    return Places(np.concatenate([NOWHERE, grid_middles(SIDE, SIDE)]), np.concatenate([NOWHERE, middles, NOWHERE]))


RECIPE = Recipe(
    family="cogvlm2",
    config={**CONFIG, "added_tokens": {text: VOCABULARY.special_id(text) for text in SPECIAL[:3]}},
    side=IMAGE,
    patches=(SIDE, SIDE),
    rows=(SIDE // 2, SIDE // 2),
    fixed=tuple(f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(CONFIG["num_hidden_layers"])),
    initialise=initialise,
    side_files=side_files,
    lead=" ",
    places=places,
    digits=False,
    plan={
        "seeing": 300,
        "answering": 700,
        "again": 1800,
        "again_rate": 0.6,
        "positions": 0.5,
        "asked_pictures": 16,
        "prompts": 0.1,
        "strange": 0.05,
    },
)
