"""The reference for checkpoints larger than memory: weights are read, used and dropped some rows at a time.

Linear layers and the embedding table go through kernels that hold no weight. A linear layer is computed in row chunks
of at most ``chunk_bytes`` float32; the embedding reads only the rows of the ids it is asked for. What is left (norms,
position tables, queries, the patch convolution) is small and stays. Every forward pass reads the weights again.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.modules.build import layer_shapes, parameter_count, parameter_shapes
from export.modules.kernels import Kernels, Role
from export.modules.vision.base import TowerSpec
from export.modules.vision.specs import VisionSpec
from export.quantisation.codes import WeightProvider
from export.specs import ModelSpec
from parity_tests.reference.arithmetic import PLAIN, Arithmetic, ArithmeticKernels
from parity_tests.reference.reference import TorchBackend

MEGABYTE = 1 << 20
ANY_GRID_PATCHES = 1024
CHUNK_BYTES = 128 * MEGABYTE
INTERPRETER_BYTES = 260 * MEGABYTE
"""Resident bytes of a Python process that has imported torch and run one operation (torch 2.13 CPU)."""


class StreamedLinear(nn.Module):
    """y = x W^T (+ b) with W read in row chunks from the provider at every call."""

    def __init__(self, name: str, shape: tuple[int, int], bias: bool, backend: StreamedTorchBackend) -> None:
        super().__init__()
        self.name, self.shape, self.has_bias, self.backend = name, shape, bias, backend
        self.rounding = backend.arithmetic.inputs.get(name)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.shape
        x = x if self.rounding is None else self.rounding(x)
        step = max(1, self.backend.chunk_bytes // (4 * columns))
        out = x.new_empty((*x.shape[:-1], rows))
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            out[..., start:stop] = F.linear(x, self.backend.rows(f"{self.name}.weight", start, stop))
        return out + self.backend.rows(f"{self.name}.bias", 0, rows) if self.has_bias else out


class StreamedEmbedding(nn.Module):
    """Embedding rows read by id; those of ids that follow one another are read together."""

    def __init__(self, name: str, width: int, backend: StreamedTorchBackend) -> None:
        super().__init__()
        self.name, self.width, self.backend = name, width, backend

    def forward(self, input_ids: Tensor) -> Tensor:
        wanted, place = torch.unique(input_ids, return_inverse=True)
        breaks = [0, *(torch.nonzero(wanted.diff() != 1).ravel() + 1).tolist(), len(wanted)]
        runs = [(int(wanted[begin]), int(wanted[end - 1]) + 1) for begin, end in itertools.pairwise(breaks)]
        return torch.cat([self.backend.rows(f"{self.name}.weight", *run) for run in runs])[place]


class StreamedKernels(ArithmeticKernels):
    """The reference's kernels but for the two that hold large weights."""

    def __init__(self, backend: StreamedTorchBackend) -> None:
        super().__init__(backend.arithmetic)
        self.backend = backend

    def linear(self, name: str, in_features: int, out_features: int, bias: bool, role: Role) -> nn.Module:
        return StreamedLinear(name, (out_features, in_features), bias, self.backend)

    def embedding(self, name: str, vocabulary: int, width: int) -> nn.Module:
        return StreamedEmbedding(name, width, self.backend)


class StreamedTorchBackend(TorchBackend):
    """A `TorchBackend` in float32 that never holds more than one chunk of a large weight.

    Args:
        chunk_bytes: float32 bytes of weight rows held at a time.
    """

    name = "torch-streamed"

    def __init__(
        self,
        spec: ModelSpec,
        weights: WeightProvider,
        device: str = "cpu",
        chunk_bytes: int = CHUNK_BYTES,
        arithmetic: Arithmetic = PLAIN,
    ) -> None:
        super().__init__(spec, weights, torch.float32, device, arithmetic)
        self.chunk_bytes = chunk_bytes

    def kernels(self) -> Kernels:
        return StreamedKernels(self)

    def rows(self, target: str, start: int, stop: int) -> Tensor:
        return self.weights.rows(target, start, stop).to(self.device).float()

    def parameter(self, target: str) -> np.ndarray:
        return self.weights.tensor(target).float().numpy().copy()


def predicted_peak(
    spec: ModelSpec,
    tokens: int,
    image_pieces: int = 1,
    chunk_bytes: int = CHUNK_BYTES,
    logit_rows: int = 1,
) -> int:
    """Resident bytes of a process that runs the streamed reference over one prompt.

    Args:
        tokens: prompt and answer positions in the cache.
        image_pieces: images per vision call.
        logit_rows: positions whose logits are asked for in one call.

    The sum of: the interpreter with torch; one chunk as stored in 16 bits, as float32 and in a matrix kernel's packed
    form; the small parameters that stay; the cache and its copy while it grows; the widest activations of a vision or a
    decoder block, whichever is larger; logits with their copies. Measured on the published MiniCPM-V sizes, 101 tokens:
    830 MiB, and 776 MiB with dequantised weights; predicted 829 MiB.
    """
    large = {f"{layer.name}.weight" for layer in layer_shapes(spec)}
    resident = 4 * sum(math.prod(shape) for name, shape in parameter_shapes(spec).items() if name not in large)
    vision, decoder = spec.vision, spec.decoder
    vision_bytes = 4 * image_pieces * _patches(vision) * (2 * vision.mlp_width + 3 * vision.width)
    per_token = 2 * decoder.mlp_width * 2 + 4 * decoder.hidden
    decoder_bytes = 4 * tokens * per_token + tokens * tokens * (1 + 4 * decoder.heads)
    cache_layer = 2 * 4 * tokens * decoder.kv_heads * decoder.head_dim
    logits = 3 * 4 * logit_rows * decoder.vocabulary
    activations = max(vision_bytes, decoder_bytes + cache_layer * decoder.layers + cache_layer)
    chunks = chunk_bytes * 5 // 2
    return INTERPRETER_BYTES + chunks + resident + activations + logits


def _patches(vision: TowerSpec) -> int:
    """Patches of one image piece; those of a table of positions, or of a 448-pixel square, where the grid is open."""
    table = vision.native_grid**2 if isinstance(vision, VisionSpec) else ANY_GRID_PATCHES
    return vision.structure.patches or table


def full_peak(spec: ModelSpec, dtype_bytes: int = 4) -> int:
    """Resident bytes of the whole reference in memory, activations aside."""
    return INTERPRETER_BYTES + dtype_bytes * parameter_count(spec)
