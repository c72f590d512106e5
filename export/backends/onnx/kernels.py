"""ONNX Runtime's operators in the trace of our modules.

Every graph computes in float32 (the processor has no faster half-precision kernels; docs/targets/cpu.md has the figures).
What a plan changes is how a matrix is stored: float32, float16 with a cast, packed integers for MatMulNBits, or int8 with
activations quantised on the way (`int8_linear` beside this file). Initializers that stand for a quantised layer are called
``<layer>.weight_codes``, ``.weight_scales`` and ``.weight_zero_points``; `export.graphs.writer` fills them.

Operators: onnxruntime docs/ContribOperators.md; RotaryEmbedding and RMSNormalization: onnx opset 23.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from export.backends.onnx.cached_attention import GroupQueryAttention, Int8CacheAttention
from export.backends.onnx.choices import rounds_finely
from export.backends.onnx.int8_linear import ACTIVATED, ACTIVATED_ZERO, ZERO, Int8TokenLinear
from export.backends.onnx.operator_set import MICROSOFT, OPSET, Attributes, stored
from export.backends.onnx.rotated_linear import RotatedRowLinear
from export.modules.kernels import CachedAttention, Kernels, Role
from export.quantisation.grid_blockwise import BlockGrid
from export.quantisation.grid_rotated import RotatedGrid
from export.quantisation.grids import GRIDS
from export.quantisation.spec import Assignment, Storage
from export.specs import DecoderSpec

EIGHT_BITS_ROUNDED = (Role.DECODER, Role.HEAD, Role.ADAPTER)
"""Roles of 8-bit layers that tokens read: with float32 inputs ONNX Runtime 1.32 unpacks the matrix in every call (one
row through 49152 x 576 on one thread: 144 ms; with int8 inputs 1.7 ms at 0.5 % of the largest value, in 4 bits 1.1 ms)."""


@dataclass(frozen=True)
class KernelChoices:
    """Choices that are not about one layer.

    Attributes:
        accuracy_level: of the input of 4-bit layers and of `EIGHT_BITS_ROUNDED`: 4 rounds it to int8 per block, 0 does not.
        storage: dtype of matrices that no assignment names.
        cache: dtype of the key/value cache; attention computes in it, over int8 in float32.
    """

    accuracy_level: int = 4
    storage: torch.dtype = torch.float32
    cache: torch.dtype = torch.float32


class OrtKernels(Kernels):
    """Operators of ONNX Runtime for one stage, with each layer's storage from ``assignments``."""

    def __init__(self, assignments: Mapping[str, Assignment], choices: KernelChoices) -> None:
        self.assignments, self.choices = assignments, choices

    def linear(self, name: str, in_features: int, out_features: int, bias: bool, role: Role) -> nn.Module:
        assignment = self.assignments.get(name)
        if assignment is not None and assignment.grid:
            grid = GRIDS[assignment.grid]
            assert isinstance(grid, BlockGrid), f"{name}: ONNX Runtime has no kernel for the grid {grid.name}"
            if isinstance(grid, RotatedGrid):
                return RotatedRowLinear(in_features, out_features, bias)
            if grid.group == 0:
                zero = ACTIVATED_ZERO if name.endswith(ACTIVATED) else ZERO
                return Int8TokenLinear(in_features, out_features, bias, zero, rounds_finely(name, grid.name))
            rounded = grid.bits == 4 or role in EIGHT_BITS_ROUNDED
            return NBitsLinear(in_features, out_features, bias, grid, self.choices.accuracy_level if rounded else 0)
        return StoredLinear(in_features, out_features, bias, self._storage(assignment))

    def rms_norm(self, width: int, eps: float) -> nn.Module:
        return RmsNorm(width, eps)

    def cached_attention(self, spec: DecoderSpec) -> CachedAttention:
        return GroupQueryAttention(spec, self.choices.cache)

    def layer_attention(self, name: str, shared: CachedAttention) -> CachedAttention:
        return Int8CacheAttention(shared.spec) if self.choices.cache is torch.int8 else shared

    def full_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, tokens, head_dim = q.shape
        rows = [t.transpose(1, 2).flatten(2) for t in (q, k, v)]
        out = symbolic(
            f"{MICROSOFT}::MultiHeadAttention",
            rows,
            {"num_heads": heads, "scale": float(head_dim**-0.5)},
            dtype=q.dtype,
            shape=(batch, tokens, heads * v.shape[3]),
            version=1,
        )
        return out.view(batch, tokens, heads, v.shape[3]).transpose(1, 2)

    def embedding(self, name: str, vocabulary: int, width: int) -> nn.Module:
        assignment = self.assignments.get(name)
        if assignment is not None and assignment.grid:
            grid = GRIDS[assignment.grid]
            return BlockEmbedding(vocabulary, width, grid.bits, grid.group)
        return StoredEmbedding(vocabulary, width, self._storage(assignment))

    def _storage(self, assignment: Assignment | None) -> torch.dtype:
        if assignment is None:
            return self.choices.storage
        return torch.float16 if assignment.storage is Storage.FP16 else torch.float32


class StoredLinear(nn.Module):
    """y = x W^T (+ b) with W (out, in) as the checkpoint has it, in float32 or float16; ONNX Runtime packs it at load."""

    def __init__(self, in_features: int, out_features: int, bias: bool, storage: torch.dtype) -> None:
        super().__init__()
        self.out_features = out_features
        self.weight = stored(out_features, in_features, dtype=storage)
        self.bias = stored(out_features, dtype=torch.float32) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = symbolic(
            f"{MICROSOFT}::FusedMatMul",
            (x, self.weight.to(x.dtype)),
            {"transB": 1},
            dtype=x.dtype,
            shape=(*x.shape[:-1], self.out_features),
            version=1,
        )
        return y if self.bias is None else y + self.bias


class NBitsLinear(nn.Module):
    """A linear layer over block-quantised rows (MatMulNBits). A last block that is not full is padded.

    Initializers: codes uint8 (out, blocks, block * bits / 8), low bits first; scales float16 (out, blocks), widened at load;
    zero points uint8 (out, ceil(blocks * bits / 8)), low bits first.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, grid: BlockGrid, level: int) -> None:
        super().__init__()
        bits, block = grid.bits, grid.group
        blocks = -(-in_features // block)
        self.out_features = out_features
        self.attributes: Attributes = {
            "K": in_features,
            "N": out_features,
            "bits": bits,
            "block_size": block,
            "accuracy_level": level,
        }
        self.weight_codes = stored(out_features, blocks, block * bits // 8, dtype=torch.uint8)
        self.weight_scales = stored(out_features, blocks, dtype=torch.float16)
        packed = -(-blocks * bits // 8)
        self.weight_zero_points = stored(out_features, packed, dtype=torch.uint8) if grid.zero_points else None
        self.bias = stored(out_features, dtype=torch.float32) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        inputs = [x, self.weight_codes, self.weight_scales.to(x.dtype), self.weight_zero_points, None, self.bias]
        # optional inputs at the end are left out, those before a given one stay as empty names
        while inputs[-1] is None:
            inputs.pop()
        shape = (*x.shape[:-1], self.out_features)
        return symbolic(f"{MICROSOFT}::MatMulNBits", inputs, self.attributes, dtype=x.dtype, shape=shape, version=1)


class RmsNorm(nn.Module):
    """Root-mean-square norm as the standard's RMSNormalization, which ONNX Runtime computes with the kernel of its own
    SimplifiedLayerNormalization (equal bits, equal time), an operator that no ONNX checker knows.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = stored(width, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        # stash_type 1 is float32
        attributes: Attributes = {"epsilon": self.eps, "axis": -1, "stash_type": 1}
        return symbolic("RMSNormalization", (x, self.weight), attributes, dtype=x.dtype, shape=x.shape, version=OPSET)


class StoredEmbedding(nn.Module):
    """Rows by id from a float32 or float16 table, widened after the lookup."""

    def __init__(self, vocabulary: int, width: int, storage: torch.dtype) -> None:
        super().__init__()
        self.weight = stored(vocabulary, width, dtype=storage)

    def forward(self, input_ids: Tensor) -> Tensor:
        return nn.functional.embedding(input_ids, self.weight).float()


class BlockEmbedding(nn.Module):
    """Rows by id from a block-quantised table (GatherBlockQuantized), dequantised in float16 and widened.

    Initializers: codes uint8 (vocabulary, width * bits / 8), low bits first; scales float16 (vocabulary, blocks).
    """

    def __init__(self, vocabulary: int, width: int, bits: int, block: int) -> None:
        super().__init__()
        self.width = width
        self.attributes: Attributes = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
        self.weight_codes = stored(vocabulary, width * bits // 8, dtype=torch.uint8)
        self.weight_scales = stored(vocabulary, width // block, dtype=torch.float16)

    def forward(self, input_ids: Tensor) -> Tensor:
        rows = symbolic(
            f"{MICROSOFT}::GatherBlockQuantized",
            (self.weight_codes, input_ids, self.weight_scales),
            self.attributes,
            dtype=torch.float16,
            shape=(*input_ids.shape, self.width),
            version=1,
        )
        return rows.float()
