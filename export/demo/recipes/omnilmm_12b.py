"""The tiny OmniLMM-12B: an EVA-02 tower inside the decoder module, a resampler, Zephyr's SentencePiece and prompt.

Alive are: norms on the branch outputs, biases on q and v alone, the class row dropped before the resampler, the dropped last
block with the final norm applied all the same, stored positions resized from 4 x 4, key positions resized from the query
table, three image tokens added behind the vocabulary, roles as ordinary text, a space put in front of every text.
"""

from __future__ import annotations

import math
import re
from typing import Any

from export.demo.questions import corpus
from export.demo.recipes.base import SHAPES_ALONE, Recipe, Tensors, json_files, licence_file, look_in_place, sine_positions
from export.demo.vocabulary import CONTROL, SPACE, UNKNOWN, Layout, pieces, sentencepiece_model
from export.families.omnilmm_12b.prompt import PICTURE_MARKS, SYSTEM
from export.specs import ModelSpec

IMAGE, STORED, PATCH, HIDDEN, QUERIES, PIECES = 84, 56, 14, 128, 9, 680
SIDE = IMAGE // PATCH

VOCABULARY_LAYOUT = Layout(
    fixed={0: ("<unk>", UNKNOWN), 1: ("<s>", CONTROL), 2: ("</s>", CONTROL)},
    words=("system", "user", "assistant", *(SPACE + word for word in re.findall("[a-z]+", SYSTEM) if len(word) > 3)),
    size=PIECES,
)
"""HuggingFaceH4/zephyr-7b-beta, tokenizer.model: Llama's first three ids, then the bytes."""

CONFIG: dict[str, Any] = {
    "architectures": ["OmniLMMForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "image_size": IMAGE,
    "initializer_range": 0.02,
    "intermediate_size": 320,
    "max_position_embeddings": 2048,
    "mm_use_im_start_end": True,
    "mm_vision_tower": "eva02_enormous_patch14_clip_224.laion2b_plus",
    "model_type": "omnilmm",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "num_query": QUERIES,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "timm_model_args": {
        "depth": 4,
        "embed_dim": 96,
        "img_size": STORED,
        "mlp_ratio": 2.6666667,
        "num_heads": 3,
        "patch_size": PATCH,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0",
    "use_cache": True,
    "use_mm_proj": True,
    "vocab_size": PIECES + len(PICTURE_MARKS),
}

ADDED = {text: PIECES + place for place, text in enumerate(PICTURE_MARKS)}
"""The image marks behind the pieces."""


def side_files() -> dict[str, bytes]:
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    rows = {0: "<unk>", 1: "<s>", 2: "</s>"} | {index: text for text, index in ADDED.items()}
    tokenizer = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(index): {"content": text, **flags} for index, text in rows.items()},
        **special,
        "legacy": True,
        "model_max_length": 2048,
        "tokenizer_class": "LlamaTokenizer",
    }
    documents = {
        "added_tokens.json": ADDED,
        "config.json": CONFIG,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
        "special_tokens_map.json": special,
        "tokenizer_config.json": tokenizer,
    }
    model = sentencepiece_model(pieces(corpus(), VOCABULARY_LAYOUT), dummy_prefix=True)
    return {**json_files(documents), "tokenizer.model": model, **licence_file("OmniLMM-12B")}


def initialise(tensors: Tensors, spec: ModelSpec) -> None:
    """Sine tables, quiet branch outputs, and queries that look at their own part of the picture from the start."""
    native, table = STORED // PATCH, tensors["model.vision_tower.pos_embed"]
    table[0, 0] = 0.0
    table[0, 1:] = sine_positions(native, native, spec.vision.width)
    tensors["model.vision_tower.cls_token"].mul_(0.02)
    for name, value in tensors.items():
        if re.search(r"vision_tower\.blocks\.\d+\.norm\d\.weight", name):
            value.fill_(0.5)
    look_in_place(tensors, "model.resampler.", math.isqrt(QUERIES))


RECIPE = Recipe(
    family="omnilmm-12b",
    config={**CONFIG, "added_tokens": ADDED},
    side=IMAGE,
    patches=(SIDE, SIDE),
    rows=(math.isqrt(QUERIES), math.isqrt(QUERIES)),
    fixed=("model.resampler.pos_embed", "model.vision_tower.pos_embed"),
    initialise=initialise,
    side_files=side_files,
    before="\n",
    start={"vision_encoder": "cogvlm2", "connector": "minicpm-v", "decoder": "minicpm-v"},
    digits=False,
    plan={**SHAPES_ALONE, "seeing": 200, "again": 700, "whole": 300},
)
