"""The tiny MiniCPM-V 1.0: its config, tokenizer and starting values.

Every quirk of the published model is alive: 26-of-27 style dropped block, an MLP width that is a multiple of 16 and not
of 32, a projected resampler input, key positions resized from the stored table, scale_emb, scale_depth and a logit
divisor other than one, an odd vocabulary, bfloat16 storage.
"""

from __future__ import annotations

import math
from typing import Any

from export.demo.questions import corpus
from export.demo.recipes.base import Recipe, Tensors, json_files, look_in_place, sine_positions
from export.demo.vocabulary import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Layout, pieces, sentencepiece_model
from export.specs import ModelSpec

SIDE, PATCH, HIDDEN, QUERIES, VOCABULARY = 112, 14, 128, 9, 661

MARKERS = ("<image>", "</image>", "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<point>", "</point>")
VOCABULARY_LAYOUT = Layout(
    fixed={0: ("<unk>", UNKNOWN), 1: ("<s>", CONTROL), 2: ("</s>", CONTROL), 3: ("<SEP>", CONTROL), 4: ("<CLS>", CONTROL)}
    | {5: ("\n", NORMAL)}
    | {101 + i: (marker, USER_DEFINED) for i, marker in enumerate((*MARKERS, "<slice>", "</slice>"))},
    words=("用户", "AI"),
    size=VOCABULARY,
)
"""Ids of the published tokenizer: OpenBMB/mlc-MiniCPM, android/app/src/main/assets/minicpm-v/tokenizer.model."""

CONFIG: dict[str, Any] = {
    "architectures": ["MiniCPMV"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_minicpm.MiniCPMVConfig",
        "AutoModel": "modeling_minicpmv.MiniCPMV",
        "AutoModelForCausalLM": "modeling_minicpmv.MiniCPMV",
    },
    "bos_token_id": 1,
    "dim_model_base": 64,
    "drop_vision_last_layer": True,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "image_size": SIDE,
    "initializer_range": 0.1,
    "intermediate_size": 320,
    "max_position_embeddings": 2048,
    "mm_use_im_start_end": True,
    "model_type": "minicpmv",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "patch_size": PATCH,
    "pretraining_tp": 1,
    "query_num": QUERIES,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "scale_depth": 1.4,
    "scale_emb": 12,
    "tie_word_embeddings": False,
    "timm_model_args": {
        "depth": 4,
        "embed_dim": 96,
        "img_size": SIDE,
        "mlp_ratio": 3.5,
        "num_heads": 3,
        "patch_size": PATCH,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0",
    "use_cache": True,
    "vision_encoder": "vit_so400m_patch14_siglip_384.webli",
    "vocab_size": VOCABULARY,
}

LICENCE_NOTE = """The weights and the tokenizer in this folder were made from drawn pictures by
parity_tests/laboratory/demo_training/train.py.
They contain nothing of the published MiniCPM-V weights.
They are licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""


def side_files() -> dict[str, bytes]:
    """config.json, the tokenizer and what lies beside them in a published folder."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer: dict[str, Any] = {
        "add_bos_token": True,
        "add_eos_token": False,
        **special,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": None,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    documents = {
        "config.json": CONFIG,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        "special_tokens_map.json": special,
        "tokenizer_config.json": tokenizer,
    }
    model = sentencepiece_model(pieces(corpus(), VOCABULARY_LAYOUT))
    return {**json_files(documents), "tokenizer.model": model, "LICENSE": LICENCE_NOTE.encode()}


def initialise(tensors: Tensors, spec: ModelSpec) -> None:
    """Sine tables, and a resampler whose queries look at their own part of the picture from the start."""
    grid = SIDE // PATCH
    tensors["vpm.pos_embed"][0].copy_(sine_positions(grid, grid, spec.vision.width))
    look_in_place(tensors, "resampler.", math.isqrt(QUERIES))


RECIPE = Recipe(
    family="minicpm-v",
    config=CONFIG,
    side=SIDE,
    patches=(SIDE // PATCH, SIDE // PATCH),
    rows=(math.isqrt(QUERIES), math.isqrt(QUERIES)),
    fixed=("resampler.pos_embed",),
    initialise=initialise,
    side_files=side_files,
    plan={"again": 1500, "whole": 2400},
)
