"""llama.cpp by llama-cpp-python: a random GGUF of Q4_0, written here.

The C interface and its structures are those of the installed distribution (abetlen/llama-cpp-python, llama_cpp/llama_cpp.py;
ggml-org/llama.cpp, include/llama.h). Codes are random bytes under one small scale, so that writing them takes no quantiser.
Matrices have the types that llama.cpp's quantiser gives them: the head is Q6_K, or Q8_0 where rows have no whole blocks of
256 (ggml-org/llama.cpp, src/llama-quant.cpp, ``llama_tensor_get_type``).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.peers.engine import Job, NotHereError, version
from runtime_py.peers.reads import Reads, position_bytes
from runtime_py.peers.shape import HEAD, DecoderShape

DISTRIBUTION = "llama-cpp-python"

BLOCKS = {"Q4_0": (32, 18, 0, 4e-3), "Q8_0": (32, 34, 0, 2e-4), "Q6_K": (256, 210, 208, 2e-6)}
"""Weights and bytes of a block, where its float16 scale lies, a small one (ggml-org/llama.cpp, ggml/src/ggml-common.h)."""


class LlamaCpp:
    """A context over the GGUF.

    Args:
        flash: whether its flash attention is on.

    Raises:
        NotHereError: it or gguf is not installed, or the shape has no blocks of 32.
    """

    def __init__(self, job: Job, flash: bool) -> None:
        self.version = version(DISTRIBUTION)
        version("gguf")
        self.reads = reads_of(job.shape)
        block = BLOCKS["Q4_0"][0]
        if any(columns % block for _, _, columns in job.shape.matrices()):
            raise NotHereError(f"Q4_0 wants columns in blocks of {block}")
        path = job.scratch / "random-q4_0.gguf"
        if not path.is_file():
            write_gguf(path, job.shape)
        c: Any = importlib.import_module("llama_cpp.llama_cpp")
        self._c = c
        self._log = c.llama_log_callback(lambda *_: None)
        c.llama_log_set(self._log, None)
        c.llama_backend_init()
        self._model = c.llama_model_load_from_file(str(path).encode(), c.llama_model_default_params())
        params = c.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = job.context, 512, 512
        params.n_threads = params.n_threads_batch = job.threads
        params.flash_attn_type = 1 if flash else 0
        self._context = c.llama_init_from_model(self._model, params)
        if not self._context:
            raise NotHereError("llama.cpp made no context")
        self._ids = np.resize(np.arange(5, 105), job.context)
        self._vocabulary = job.shape.vocabulary

    def fill(self, tokens: int) -> None:
        c = self._c
        c.llama_memory_clear(c.llama_get_memory(self._context), True)
        self._feed(self._ids[:tokens])

    def step(self, tokens: int) -> None:
        for token in self._ids[:tokens]:
            self._feed(np.array([token]))

    def _feed(self, ids: np.ndarray) -> None:
        c = self._c
        for start in range(0, len(ids), 512):
            part = ids[start : start + 512]
            array = (c.llama_token * len(part))(*part.tolist())
            if c.llama_decode(self._context, c.llama_batch_get_one(array, len(part))):
                raise NotHereError("llama_decode failed")
        logits = c.llama_get_logits_ith(self._context, -1)
        np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax()


def kind_of(name: str, columns: int) -> str:
    """The type of a matrix, a key of `BLOCKS`."""
    return "Q4_0" if name != HEAD else "Q8_0" if columns % BLOCKS["Q6_K"][0] else "Q6_K"


def reads_of(shape: DecoderShape) -> Reads:
    """What a step reads; keys and values are float16, as they come."""
    total = 0.0
    for name, rows, columns in shape.matrices():
        weights, size, _, _ = BLOCKS[kind_of(name, columns)]
        total += rows * columns * size / weights * (shape.layers if "{}" in name else 1)
    return Reads(total, position_bytes(shape, 2))


def write_gguf(path: Path, shape: DecoderShape) -> None:
    """A random model of Llama's architecture in Q4_0."""
    gguf: Any = importlib.import_module("gguf")
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(shape.layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.mlp)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_file_type(2)  # mostly Q4_0
    writer.add_tokenizer_model("no_vocab")
    draw = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int, kind: str) -> None:
        weights, size, place, scale = BLOCKS[kind]
        blocks = draw.integers(0, 256, (rows, columns // weights, size), dtype=np.uint8)
        blocks[:, :, place : place + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType[kind])

    matrix("token_embd.weight", shape.vocabulary, shape.hidden, "Q4_0")
    writer.add_tensor("output_norm.weight", np.ones(shape.hidden, np.float32))
    for name, rows, columns in shape.matrices():
        kind = kind_of(name, columns)
        for layer in range(shape.layers if "{}" in name else 1):
            matrix(name.format(layer), rows, columns, kind)
    for layer in range(shape.layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(shape.hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
