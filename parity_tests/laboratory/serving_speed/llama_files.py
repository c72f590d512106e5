"""Random GGUF files for llama.cpp of the sizes that one of our packages has: a decoder in Q4_0 and a MiniCPM-V tower.

Run by an interpreter that has NumPy and gguf, with the sizes as JSON (`serving_speed.sizes.sizes_of`):

    python llama_files.py SIZES.json decoder.gguf [mmproj.gguf]

The decoder is a Llama, which is MiniCPM's without its three constant factors. All its matrices are Q4_0, the head and the
embedding too, or of the type that the sizes name as ``matrices``; the tower's are Q8_0, or float16 where columns do not
fill its blocks. Every matrix of one shape holds the same random numbers. Keys and names: ggml-org/llama.cpp,
src/llama-arch.cpp, tools/mtmd/clip-impl.h and tools/mtmd/legacy-models/minicpmv-convert-image-encoder-to-gguf.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

DEVIATION = 0.02
Q8_0_BLOCK = 32
SPECIAL = ("<unk>", "<s>", "</s>", "<image>", "</image>")
FILE_TYPES = {"F16": 1, "Q4_0": 2}
"""Type of the matrices to what a file says of itself (llama.h, llama_ftype)."""
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
"""Kinds of tokens (llama.h, llama_token_type)."""


class Writer:
    """A GGUF file whose matrices are drawn once for each shape and type."""

    def __init__(self, path: Path, kind: str) -> None:
        import gguf

        self.gguf = gguf
        self.file = gguf.GGUFWriter(path, kind)
        self._drawn: dict[tuple[tuple[int, ...], str], Any] = {}

    def matrix(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        """Normal numbers (rows, columns); ``kind`` is Q4_0, Q8_0, F16 or F32."""
        types = self.gguf.GGMLQuantizationType
        if (shape, kind) not in self._drawn:
            numbers = np.random.default_rng(len(self._drawn)).standard_normal(shape, np.float32) * np.float32(DEVIATION)
            self._drawn[shape, kind] = self.gguf.quants.quantize(numbers, types[kind])
        self.file.add_tensor(name, self._drawn[shape, kind], raw_dtype=types[kind])

    def vector(self, name: str, size: int, value: float) -> None:
        """float32, all of one value."""
        self.file.add_tensor(name, np.full(size, value, np.float32))

    def close(self) -> None:
        """Write it all."""
        self.file.write_header_to_file()
        self.file.write_kv_data_to_file()
        self.file.write_tensors_to_file()
        self.file.close()


def decoder(path: Path, sizes: dict[str, Any]) -> None:
    """The language model, with a vocabulary of single letters and names of no meaning."""
    out, hidden, kind = Writer(path, "llama"), sizes["hidden"], sizes.get("matrices", "Q4_0")
    file, narrow = out.file, sizes["head_dim"] * sizes["kv_heads"]
    file.add_block_count(sizes["layers"])
    file.add_context_length(sizes["context"])
    file.add_embedding_length(hidden)
    file.add_feed_forward_length(sizes["mlp"])
    file.add_head_count(sizes["heads"])
    file.add_head_count_kv(sizes["kv_heads"])
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_dimension_count(sizes["head_dim"])
    file.add_vocab_size(sizes["vocabulary"])
    file.add_file_type(FILE_TYPES[kind])
    vocabulary(file, sizes["vocabulary"])
    out.matrix("token_embd.weight", (sizes["vocabulary"], hidden), kind)
    out.matrix("output.weight", (sizes["vocabulary"], hidden), kind)
    out.vector("output_norm.weight", hidden, 1.0)
    wide = sizes["head_dim"] * sizes["heads"]
    shapes = {
        "attn_q": (wide, hidden),
        "attn_k": (narrow, hidden),
        "attn_v": (narrow, hidden),
        "attn_output": (hidden, wide),
        "ffn_gate": (sizes["mlp"], hidden),
        "ffn_up": (sizes["mlp"], hidden),
        "ffn_down": (hidden, sizes["mlp"]),
    }
    for layer in range(sizes["layers"]):
        for name, shape in shapes.items():
            out.matrix(f"blk.{layer}.{name}.weight", shape, kind)
        out.vector(f"blk.{layer}.attn_norm.weight", hidden, 1.0)
        out.vector(f"blk.{layer}.ffn_norm.weight", hidden, 1.0)
    out.close()


def vocabulary(file: Any, size: int) -> None:
    """Pieces as SentencePiece has them: special ones, 256 bytes, letters, and words that no text has."""
    letters = ["\u2581", *(chr(code) for code in range(33, 127))]
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    kinds = [UNKNOWN, *[CONTROL] * (len(SPECIAL) - 1), *[BYTE] * 256, *[NORMAL] * len(letters)]
    extra = size - len(pieces)
    file.add_tokenizer_model("llama")
    file.add_token_list([*pieces, *(f"\u2581w{number}" for number in range(extra))])
    file.add_token_scores([*[0.0] * len(pieces), *(-1000.0 - number for number in range(extra))])
    file.add_token_types([*kinds, *[NORMAL] * extra])
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    file.add_unk_token_id(0)
    file.add_chat_template("{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}")


def tower(path: Path, sizes: dict[str, int]) -> None:
    """SigLIP and a resampler, as MiniCPM-V 2.6 has them (``minicpmv_version`` 3)."""
    out, wide, hidden = Writer(path, "clip"), sizes["vision_width"], sizes["hidden"]
    file = out.file
    for name, flag in (("has_text_encoder", False), ("has_vision_encoder", True), ("has_minicpmv_projector", True)):
        file.add_bool(f"clip.{name}", flag)
    file.add_file_type(7)  # mostly Q8_0
    file.add_string("clip.projector_type", "resampler")
    file.add_int32("clip.minicpmv_version", 3)
    file.add_uint32("clip.minicpmv_query_num", sizes["queries"])
    numbers = {
        "image_size": sizes["side"],
        "patch_size": sizes["patch"],
        "embedding_length": wide,
        "feed_forward_length": sizes["vision_mlp"],
        "projection_dim": 0,
        "attention.head_count": sizes["vision_heads"],
        "block_count": sizes["vision_layers"],
    }
    for name, number in numbers.items():
        file.add_uint32(f"clip.vision.{name}", number)
    file.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    file.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    file.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    file.add_bool("clip.use_gelu", True)
    patch = sizes["patch"]
    out.matrix("v.patch_embd.weight", (wide, 3, patch, patch), "F16")
    out.vector("v.patch_embd.bias", wide, 0.0)
    out.matrix("v.position_embd.weight", (70 * 70, wide), "F16")
    norm(out, "v.post_ln", wide)
    shapes = {
        "attn_q": (wide, wide),
        "attn_k": (wide, wide),
        "attn_v": (wide, wide),
        "attn_out": (wide, wide),
        "ffn_up": (sizes["vision_mlp"], wide),
        "ffn_down": (wide, sizes["vision_mlp"]),
    }
    for layer in range(sizes["vision_layers"]):
        for name, shape in shapes.items():
            whole = shape[1] % Q8_0_BLOCK == 0  # SigLIP-so400m's 4304 columns are none
            out.matrix(f"v.blk.{layer}.{name}.weight", shape, "Q8_0" if whole else "F16")
            out.vector(f"v.blk.{layer}.{name}.bias", shape[0], 0.0)
        norm(out, f"v.blk.{layer}.ln1", wide)
        norm(out, f"v.blk.{layer}.ln2", wide)
    out.matrix("resampler.query", (sizes["queries"], hidden), "F32")
    out.matrix("resampler.pos_embed_k", (70 * 70, hidden), "F32")
    out.matrix("resampler.proj.weight", (hidden, hidden), "Q8_0")
    out.matrix("resampler.kv.weight", (hidden, wide), "Q8_0")
    for part in ("q", "k", "v", "out"):
        out.matrix(f"resampler.attn.{part}.weight", (hidden, hidden), "Q8_0")
        out.vector(f"resampler.attn.{part}.bias", hidden, 0.0)
    for part in ("q", "kv", "post"):
        norm(out, f"resampler.ln_{part}", hidden)
    out.close()


def norm(out: Writer, name: str, size: int) -> None:
    """A layer norm that changes nothing after it has normalised."""
    out.vector(f"{name}.weight", size, 1.0)
    out.vector(f"{name}.bias", size, 0.0)


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    decoder(Path(sys.argv[2]), given)
    if len(sys.argv) > 3:
        tower(Path(sys.argv[3]), given)
