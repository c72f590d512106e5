"""OpenVINO GenAI: a random decoder of the shape, written for it by Optimum as its users write theirs, int4 and all.

The interface is that of the installed distribution (openvinotoolkit/openvino.genai, ContinuousBatchingPipeline), which reads
a prompt and takes each step when it is told to; LLMPipeline runs the same on processors. Its key/value cache is uint8, as it
comes. Optimum writes groups of 128 weights with a zero point each, or fewer where 128 do not divide the rows.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.peers.engine import Job, NotHereError, version
from runtime_py.peers.shape import DecoderShape

DISTRIBUTION = "openvino-genai"
GROUPS = (128, 64, 32)
"""Weights that share a scale, the first that divides every row."""

BLOCK = 32
"""Positions in a block of its cache on processors (openvino.genai, src/cpp/src/continuous_batching/cache_manager.hpp)."""


class OpenVinoGenai:
    """A pipeline without a tokenizer, fed ids.

    Raises:
        NotHereError: it, or what writes its files, is not installed, or could not write them.
    """

    def __init__(self, job: Job) -> None:
        self.version = version(DISTRIBUTION)
        for needed in ("optimum-intel", "nncf", "torch", "transformers"):
            version(needed)
        folder = job.scratch / "openvino"
        if not folder.is_dir():
            write_model(folder, job.shape, job.scratch)
        self._genai: Any = importlib.import_module("openvino_genai")
        self._tensor: Any = importlib.import_module("openvino").Tensor
        scheduler = self._genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = job.chunk or 512
        scheduler.num_kv_blocks = 2 * -(-job.context // BLOCK)
        settings = {"INFERENCE_NUM_THREADS": job.threads}
        self._pipeline = self._genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", settings)
        self._config = self._genai.GenerationConfig(max_new_tokens=job.context, ignore_eos=True, do_sample=False)
        self._ids = job.ids
        self._handle: Any = None
        self._asked = 0

    def fill(self, tokens: int) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._pipeline.step()
        self._asked += 1
        ids = self._ids[None, :tokens].astype(np.int64)
        self._handle = self._pipeline.add_request(self._asked, self._tensor(ids), self._config)
        while not self._handle.can_read():
            self._pipeline.step()
        self._handle.read()

    def step(self, tokens: int) -> None:
        for _ in range(tokens):
            self._pipeline.step()


def write_model(folder: Path, shape: DecoderShape, scratch: Path) -> None:
    """A random Llama in transformers' form, and Optimum's int4 export of it.

    Raises:
        NotHereError: no group divides the rows, or Optimum fails.
    """
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    group = next((size for size in GROUPS if shape.hidden % size == 0 and shape.mlp % size == 0), None)
    if group is None:
        raise NotHereError(f"int4 wants rows in groups of {GROUPS[-1]}")
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=8192, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    source = scratch / "transformers"
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(source)
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino", "-m", str(source)]
    flags = ["--task", "text-generation-with-past", "--weight-format", "int4", "--group-size", str(group)]
    done = subprocess.run([*command, *flags, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotHereError(f"Optimum did not write it: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
