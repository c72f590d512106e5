"""The tiny WeMM-Chat-CN: any grid of patches, bucketed positions, windows of patches, InternLM2 with partial LoRA.

Alive are: the resize rule that only shrinks, padding to whole patches, dynamic height and width, replicated edges of the
windows, a splitter row at either end, packed and grouped wqkv, deltas on image rows in prefill and on none in decode,
special tokens that rename unused SentencePiece pieces, an answer that ends with another id than the config's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from export.demo.questions import corpus
from export.demo.recipes.base import NOWHERE, SHAPES_ALONE, Places, Recipe, Tensors, json_files, licence_file, sine_positions
from export.demo.vocabulary import CONTROL, UNKNOWN, USER_DEFINED, Layout, pieces, sentencepiece_model
from export.specs import ModelSpec
from runtime_py.preprocess.base import ImageInputs
from runtime_py.preprocess.wemm import target_size

SHORTEST, LONGEST, PATCH, KERNEL, HIDDEN, VOCABULARY = 56, 84, 14, 2, 128, 624
SIDE = LONGEST // PATCH
CHAT_END, CHAT_START = VOCABULARY - 2, VOCABULARY - 1

VOCABULARY_LAYOUT = Layout(
    fixed={0: ("<unk>", UNKNOWN), 1: ("<s>", CONTROL), 2: ("</s>", CONTROL)}
    | {CHAT_END: ("[UNUSED_TOKEN_145]", USER_DEFINED), CHAT_START: ("[UNUSED_TOKEN_146]", USER_DEFINED)},
    words=("user", "assistant"),
    size=VOCABULARY,
)
"""internlm/internlm2-chat-7b, tokenizer_config.json: the last two pieces are renamed, <|im_end|> before <|im_start|>."""

CONFIG: dict[str, Any] = {
    "architectures": ["WemmForConditionalGeneration"],
    "do_image_splitting": False,
    "downsampler_config": {
        "bias": False,
        "depth": 2,
        "hidden_act": "gelu",
        "kernel_size": KERNEL,
        "llm_hidden_size": HIDDEN,
        "model_type": "downsampler",
        "stride": KERNEL,
        "visual_hidden_size": 96,
    },
    "image_processor": {"size": {"longest_edge": LONGEST, "shortest_edge": SHORTEST}},
    "model_type": "wemm_hf",
    "spliter_emb_config": {"embedding_dim": HIDDEN, "num_embeddings": 2},
    "text_config": {
        "bias": False,
        "bos_token_id": 1,
        "chat_end_token_id": CHAT_END,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": 320,
        "max_position_embeddings": 2048,
        "model_type": "internlm2",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000,
        "tie_word_embeddings": False,
        "vocab_size": VOCABULARY,
    },
    "tokenizer_path": ".",
    "torch_dtype": "bfloat16",
    "vision_config": {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 96,
        "image_size": LONGEST,
        "intermediate_size": 336,
        "layer_norm_eps": 1e-06,
        "model_type": "Idefics2VisionConfig",
        "num_attention_heads": 3,
        "num_channels": 3,
        "num_hidden_layers": 3,
        "patch_size": PATCH,
    },
}


def side_files() -> dict[str, bytes]:
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {0: "<unk>", 1: "<s>", 2: "</s>", CHAT_END: "<|im_end|>", CHAT_START: "<|im_start|>"}
    tokenizer = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(index): {"content": text, **flags} for index, text in added.items()},
        **special,
        "tokenizer_class": "InternLM2Tokenizer",
    }
    documents = {
        "config.json": CONFIG,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
        "special_tokens_map.json": special,
        "tokenizer_config.json": tokenizer,
    }
    model = sentencepiece_model(pieces(corpus(), VOCABULARY_LAYOUT))
    return {**json_files(documents), "tokenizer.model": model, **licence_file("WeMM-Chat-CN")}


def initialise(tensors: Tensors, spec: ModelSpec) -> None:
    """Sine positions, and deltas that begin at nothing."""
    tensors["vision_tower.embeddings.position_embedding.weight"].copy_(sine_positions(SIDE, SIDE, spec.vision.width))
    for name, value in tensors.items():
        if name.endswith("Plora_B.weight"):
            value.zero_()


def grid_of(width: int, height: int) -> tuple[int, int, int, int]:
    """(width, height) after the resize, then rows and columns of patches."""
    wide, high = target_size(width, height, SHORTEST, LONGEST, False)
    return wide, high, -(-high // PATCH), -(-wide // PATCH)


def shape_of(width: int, height: int) -> tuple[int, ...]:
    _, _, rows, columns = grid_of(width, height)
    return -(-rows // KERNEL) * -(-columns // KERNEL) + 2, rows, columns


def places(inputs: ImageInputs, size: tuple[int, int]) -> Places:
    """Patches, of which the last may reach over the edge; windows of them between two learned rows."""
    wide, high, rows, columns = grid_of(*size)

    def middles(step: int) -> np.ndarray:
        y, x = np.meshgrid(np.arange(0, rows, step), np.arange(0, columns, step), indexing="ij")
        ends = [(np.minimum((at + step) * PATCH, length), at * PATCH, length) for at, length in ((x, wide), (y, high))]
        return np.stack([((end + start) / 2 / length).reshape(-1) for end, start, length in ends], axis=1)

    return Places(middles(1), np.concatenate([NOWHERE, middles(KERNEL), NOWHERE]))


RECIPE = Recipe(
    family="wemm",
    config={**CONFIG, "added_tokens": {"<|im_end|>": CHAT_END, "<|im_start|>": CHAT_START}},
    side=LONGEST,
    patches=(SIDE, SIDE),
    rows=(SIDE // KERNEL, SIDE // KERNEL),
    fixed=(),
    initialise=initialise,
    side_files=side_files,
    stop="<|im_end|>",
    places=places,
    shape_of=shape_of,
    known={"language_model.model.layers.0.attention.wo.Plora_A.weight": (8, HIDDEN)},
    start={"vision_encoder": "minicpm-v", "decoder": "minicpm-v"},
    digits=False,
    plan={**SHAPES_ALONE, "again": 500},
)
