"""PyTorch, eager: a random decoder of the shape in bfloat16, written with its own operators."""

from __future__ import annotations

import importlib
from typing import Any

from runtime_py.peers.engine import Job, NotHereError, version
from runtime_py.peers.reads import Reads, position_bytes


class PyTorch:
    """Weights and a cache of the whole context.

    Raises:
        NotHereError: it is not installed.
    """

    def __init__(self, job: Job) -> None:
        self.version = version("torch")
        try:
            torch: Any = importlib.import_module("torch")
        except ImportError as error:
            raise NotHereError(f"torch does not load: {error}") from error
        torch.set_num_threads(job.threads)
        self._torch, self._shape = torch, job.shape
        self.reads = Reads(2 * job.shape.weights, position_bytes(job.shape, 2))
        self._length = 0
        half = torch.bfloat16

        def matrix(rows: int, columns: int) -> Any:
            return torch.empty(rows, columns, dtype=half).uniform_(-0.02, 0.02)

        shape = job.shape
        keys = shape.head_width * shape.kv_heads
        self._layers = [
            (
                matrix(shape.hidden + 2 * keys, shape.hidden),
                matrix(shape.hidden, shape.hidden),
                matrix(2 * shape.mlp, shape.hidden),
                matrix(shape.hidden, shape.mlp),
                torch.zeros(2, 1, shape.kv_heads, job.context, shape.head_width, dtype=half),
            )
            for _ in range(shape.layers)
        ]
        self._head = matrix(shape.vocabulary, shape.hidden)
        self._norm = torch.ones(shape.hidden, dtype=half)
        self._rows = matrix(job.context, shape.hidden)

    def fill(self, tokens: int) -> None:
        self._length = 0
        self._feed(tokens)

    def step(self, tokens: int) -> None:
        for _ in range(tokens):
            self._feed(1)

    def _feed(self, tokens: int) -> None:
        torch, shape = self._torch, self._shape
        functional = torch.nn.functional
        begin, end = self._length, self._length + tokens
        keys = shape.head_width * shape.kv_heads
        with torch.inference_mode():
            x = self._rows[:tokens]
            for qkv, out, gate_up, down, cache in self._layers:
                joined = functional.linear(functional.rms_norm(x, (shape.hidden,), self._norm), qkv)
                parts = joined.split([shape.hidden, keys, keys], dim=-1)
                q, k, v = (part.view(1, tokens, -1, shape.head_width).transpose(1, 2) for part in parts)
                cache[0, :, :, begin:end], cache[1, :, :, begin:end] = k, v
                seen = functional.scaled_dot_product_attention(
                    q, cache[0, :, :, :end], cache[1, :, :, :end], is_causal=tokens > 1, enable_gqa=True
                )
                x = x + functional.linear(seen.transpose(1, 2).reshape(tokens, -1), out)
                gate, up = functional.linear(functional.rms_norm(x, (shape.hidden,), self._norm), gate_up).chunk(2, dim=-1)
                x = x + functional.linear(functional.silu(gate) * up, down)
            functional.linear(functional.rms_norm(x[-1:], (shape.hidden,), self._norm), self._head).argmax()
        self._length = end
