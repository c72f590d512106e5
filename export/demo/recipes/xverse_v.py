"""The tiny XVERSE-V: three parts, tiles, a CLIP tower, and LoRA on every linear of the decoder.

Alive are: the tiling with its swapped axes (1 to 10 views of a picture in one call), the class row, the norm in front of
the first block, the dropped last block, the LayerNorm of the connector, LoRA folded in with scale 2, adapters in a pickle,
the prompt that ends in a space, an answer that ends with id 3.
"""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from export.demo.questions import corpus
from export.demo.recipes.base import (
    SHAPES_ALONE,
    Places,
    Recipe,
    Tensors,
    grid_middles,
    json_files,
    licence_file,
    sine_positions,
)
from export.demo.vocabulary import CONTROL, UNKNOWN, Layout, pieces, sentencepiece_model
from export.families.xverse_v.weights import ADAPTERS, LLM, VIT
from export.package.tokenizer_json import convert
from export.specs import ModelSpec
from runtime_py.preprocess.base import ImageInputs
from runtime_py.preprocess.xverse_v import tile_grid

TILE, PATCH, VOCABULARY = 84, 14, 640
SIDE = TILE // PATCH

FOLDERS = {VIT: "clip-vit", LLM: "xverse-llm", ADAPTERS: "adapters"}
SETTINGS: dict[str, Any] = {
    "arch": "vxverse",
    "model_type": "pretrain_xverse13b-chat",
    "vit_path": FOLDERS[VIT],
    "llama_model": FOLDERS[LLM],
    "ckpt": f"{FOLDERS[ADAPTERS]}/adapter_and_lora.bin",
    "lora_r": 8,
    "lora_alpha": 16,
    "end_sym": "<|endoftext|>",
    "prompt_template": "Human: {}\nAssistant: ",
}
CLIP: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 336,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "patch_size": PATCH,
    "image_size": TILE,
    "layer_norm_eps": 1e-05,
    "hidden_act": "quick_gelu",
    "model_type": "clip_vision_model",
}
DECODER: dict[str, Any] = {
    "architectures": ["XverseForCausalLM"],
    "bos_token_id": 2,
    "eos_token_id": 3,
    "hidden_act": "silu",
    "hidden_size": 128,
    "intermediate_size": 320,
    "max_position_embeddings": 1024,
    "model_type": "xverse",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "pad_token_id": 1,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": VOCABULARY,
}
GENERATION = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "max_new_tokens": 2048, "temperature": 0.5}
GENERATION |= {"top_k": 30, "top_p": 0.85, "repetition_penalty": 1.1}
SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<pad>", "unk_token": "<unk>"}

VOCABULARY_LAYOUT = Layout(
    fixed={0: ("<unk>", UNKNOWN), 1: ("<pad>", CONTROL), 2: ("<|startoftext|>", CONTROL), 3: ("<|endoftext|>", CONTROL)},
    words=("Human", "Assistant"),
    size=VOCABULARY,
)
"""Ids 1 to 3 as published (xverse/XVERSE-13B-Chat, generation_config.json)."""


@cache
def tokenizer_file() -> bytes:
    """A BPE vocabulary with byte fallback as ``tokenizer.json``, the only form XVERSE publishes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(sentencepiece_model([*pieces(corpus(), VOCABULARY_LAYOUT)]))
        return (json.dumps(convert(path), ensure_ascii=False, indent=1) + "\n").encode()


def side_files() -> dict[str, bytes]:
    tokenizer = {**SPECIAL, "model_max_length": 1024, "tokenizer_class": "PreTrainedTokenizerFast"}
    documents = {
        "config.json": SETTINGS,
        f"{FOLDERS[VIT]}/config.json": CLIP,
        f"{FOLDERS[LLM]}/config.json": DECODER,
        f"{FOLDERS[LLM]}/generation_config.json": GENERATION,
        "special_tokens_map.json": SPECIAL,
        "tokenizer_config.json": tokenizer,
    }
    return {**json_files(documents), "tokenizer.json": tokenizer_file(), **licence_file("XVERSE-V")}


def file_of(name: str) -> tuple[str, str]:
    """The part a tensor belongs to: CLIP and decoder in safetensors, adapters in the published pickle."""
    part = next(prefix for prefix in FOLDERS if name.startswith(prefix))
    file = SETTINGS["ckpt"] if part == ADAPTERS else f"{FOLDERS[part]}/model.safetensors"
    return file, name.removeprefix(part)


def initialise(tensors: Tensors, spec: ModelSpec) -> None:
    """Sine positions, and deltas that begin at nothing, as LoRA's do."""
    table = tensors[f"{VIT}vision_model.embeddings.position_embedding.weight"]
    table[0] = 0.0
    table[1:] = sine_positions(SIDE, SIDE, spec.vision.width)
    tensors[f"{VIT}vision_model.embeddings.class_embedding"].mul_(0.02)
    for name, value in tensors.items():
        if ".lora_B" in name:
            value.zero_()


def shape_of(width: int, height: int) -> tuple[int, ...]:
    rows, columns = tile_grid(width, height, TILE)
    views = 1 + rows * columns * ((rows, columns) != (1, 1))
    return views * SIDE * SIDE, rows, columns


def places(inputs: ImageInputs, size: tuple[int, int]) -> Places:
    """The global view's patches, then each tile's; a tile's own row does not know which tile it is of, so has no place."""
    middles = grid_middles(SIDE, SIDE)
    rows, columns = tile_grid(*size, TILE)
    tiles = [
        (middles + np.array([column, row])) / (columns, rows)
        for row in range(rows)
        for column in range(columns)
        if (rows, columns) != (1, 1)
    ]
    vision = np.concatenate([middles, *tiles])
    return Places(vision, np.concatenate([middles, np.full((len(vision) - len(middles), 2), np.nan)]))


RECIPE = Recipe(
    family="xverse-v",
    config={**SETTINGS, "vision_config": CLIP, "text_config": DECODER, "generation_config": GENERATION},
    side=TILE,
    patches=(SIDE, SIDE),
    rows=(SIDE, SIDE),
    fixed=(),
    initialise=initialise,
    side_files=side_files,
    stop="<|endoftext|>",
    places=places,
    shape_of=shape_of,
    file_of=file_of,
    start={"vision_encoder": "minicpm-v", "decoder": "minicpm-v"},
    digits=False,
    plan=SHAPES_ALONE,
)
