"""The operators of TensorRT's graphs: standard ONNX of opset 24 only.

int4 weights are `DequantizeLinear` over blocks of the input axis in front of a `MatMul`, which TensorRT joins into one
weight-only layer; they stay (out_features, in_features) with a `Transpose` between.

The key/value cache is a fixed buffer that `TensorScatter` updates in place (TensorRT's KVCacheUpdate layer): nothing is
copied between steps. Attention runs over the whole buffer behind an explicit mask, and `network` gives the layer the
filled length.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from export.modules.kernels import CachedAttention, Kernels, Linear, RMSNorm, Role
from export.quantisation.grids import GRIDS
from export.quantisation.spec import Assignment, Storage
from export.specs import DecoderSpec

OPSET = 24
"""The first opset with TensorScatter."""

ROW_MULTIPLE = 16
"""int4 matrices are padded to a multiple of this many output rows: an odd number falls off TensorRT's int4 kernels."""


def padded_rows(rows: int) -> int:
    """Output rows of an int4 matrix as stored."""
    return -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE


class Int4Linear(nn.Module):
    """y = x dequantise(weight_codes, weight_scales)^T (+ b).

    ``weight_codes`` is (rows, in_features / 2) bytes of two signed codes, which `graph` retypes to an INT4 matrix of
    in_features columns; ``weight_scales`` is float16 (rows, in_features / block); ``rows`` is out_features padded. The
    dequantised matrix is float16, and widened where the graph computes in float32.
    """

    def __init__(self, in_features: int, out_features: int, block: int, bias: bool) -> None:
        super().__init__()
        self.rows = padded_rows(out_features)
        self.in_features, self.out_features, self.block = in_features, out_features, block
        codes = torch.empty(self.rows, in_features // 2, dtype=torch.int8)
        scales = torch.empty(self.rows, in_features // block, dtype=torch.float16)
        self.weight_codes = nn.Parameter(codes, requires_grad=False)
        self.weight_scales = nn.Parameter(scales, requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight = symbolic(
            "DequantizeLinear",
            (self.weight_codes, self.weight_scales),
            {"axis": 1, "block_size": self.block},
            dtype=torch.float16,
            shape=(self.rows, self.in_features),
            version=OPSET,
        )
        # stored (out, in) so that it can be written row by row; the engine is as large as with the transposed layout
        y = torch.matmul(x, weight.to(x.dtype).transpose(0, 1))
        if self.rows != self.out_features:
            y = y[..., : self.out_features]
        return y if self.bias is None else y + self.bias


class FusedRMSNorm(RMSNorm):
    """The same norm as one `RMSNormalization`, which computes in float32 inside."""

    def forward(self, x: Tensor) -> Tensor:
        return symbolic(
            "RMSNormalization",
            (x, self.weight),
            {"axis": -1, "epsilon": self.eps, "stash_type": 1},  # 1 is float32 in TensorProto.DataType
            dtype=x.dtype,
            shape=x.shape,
            version=OPSET,
        )


class InPlaceAttention(CachedAttention):
    """Causal attention over a cache buffer of ``capacity`` positions, updated in place.

    The write position is the number of cached tokens, which the shapes of ``attention_mask`` (batch, total) and of
    the tokens give; its values are not read, since one sequence has no padding.
    """

    def __init__(self, spec: DecoderSpec, capacity: int) -> None:
        super().__init__(spec)
        self.capacity = capacity

    def prepare(self, attention_mask: Tensor, position_ids: Tensor) -> tuple[Tensor, ...]:
        """Rotary tables, mask (1, 1, tokens, capacity) and write positions int64 (batch,)."""
        angles = self.angles(position_ids)
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        total, new = (_last_size(tensor) for tensor in (attention_mask, position_ids))
        columns = torch.arange(self.capacity, device=attention_mask.device)
        tokens = position_ids.shape[-1]
        # positions of the new tokens, cut from the range by shapes alone: the mask's values are not read
        rows = symbolic("Slice", (columns, total - new, total), dtype=torch.int64, shape=(tokens,), version=13)
        # explicit: ``is_causal`` with ``nonpad_kv_seqlen`` could say the same, which TensorRT's parser drops without a word
        mask = columns[None, :] <= rows[:, None]
        return angles.cos(), angles.sin(), mask[None, None], (total - new).expand(attention_mask.shape[0])

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, past_key: Tensor, past_value: Tensor, shared: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        spec = self.spec
        cos, sin, mask, write = shared
        batch, tokens = q.shape[0], q.shape[1]
        q = _rotate(q.view(batch, tokens, spec.heads, spec.head_dim).transpose(1, 2), cos, sin)
        k = _rotate(k.view(batch, tokens, spec.kv_heads, spec.head_dim).transpose(1, 2), cos, sin)
        v = v.view(batch, tokens, spec.kv_heads, spec.head_dim).transpose(1, 2)
        key, value = _update(past_key, k, write), _update(past_value, v, write)
        out = _attention(q, key, value, mask)
        return out.transpose(1, 2).reshape(batch, tokens, spec.heads * spec.head_dim), key, value


class RowsAttention(InPlaceAttention):
    """The same for several sequences, each filled as far as it is.

    Of ``attention_mask`` (batch, total) the values are read: as many ones a row as it has positions, those of this call
    among them, and zeros behind.
    """

    def prepare(self, attention_mask: Tensor, position_ids: Tensor) -> tuple[Tensor, ...]:
        """Rotary tables, mask (batch, 1, tokens, capacity) and write positions int64 (batch,)."""
        angles = self.angles(position_ids)
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        new, tokens = _last_size(position_ids), position_ids.shape[-1]
        columns = torch.arange(self.capacity, device=attention_mask.device)
        order = symbolic("Slice", (columns, torch.zeros_like(new), new), dtype=torch.int64, shape=(tokens,), version=13)
        write = attention_mask.sum(dim=1) - new
        rows = write[:, None, None, None] + order[:, None]
        return angles.cos(), angles.sin(), columns <= rows, write


class TrtKernels(Kernels):
    """Kernels of a TensorRT graph.

    Args:
        assignments: storage of each layer by canonical name; layers that are not int4 keep the graph's dtype.
        capacity: positions of a sequence's cache.
        sequences: of a decoder call at most.
    """

    def __init__(self, assignments: Mapping[str, Assignment], capacity: int, sequences: int = 1) -> None:
        self.assignments = assignments
        self.capacity = capacity
        self.sequences = sequences

    def linear(self, name: str, in_features: int, out_features: int, bias: bool, role: Role) -> nn.Module:
        assignment = self.assignments.get(name)
        if assignment is None or assignment.storage is not Storage.INT4:
            return Linear(in_features, out_features, bias, role)
        return Int4Linear(in_features, out_features, GRIDS[assignment.grid].group, bias)

    def rms_norm(self, width: int, eps: float) -> nn.Module:
        return FusedRMSNorm(width, eps)

    def cached_attention(self, spec: DecoderSpec) -> CachedAttention:
        kind = RowsAttention if self.sequences > 1 else InPlaceAttention
        return kind(spec, self.capacity)

    def full_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _attention(q, k, v, None)


def _last_size(x: Tensor) -> Tensor:
    """int64 (1,): the size of the last axis."""
    return symbolic("Shape", (x,), {"start": x.ndim - 1}, dtype=torch.int64, shape=(1,), version=15)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`export.modules.kernels.rotate`, cut by slices: a chunk is traced as a sequence, which TensorRT does not read."""
    wide, half = x.float(), x.shape[-1] // 2
    turned = torch.cat([-wide[..., half:], wide[..., :half]], dim=-1)
    return (wide * cos + turned * sin).to(x.dtype)


def _update(cache: Tensor, new: Tensor, write: Tensor) -> Tensor:
    return symbolic("TensorScatter", (cache, new, write), {"axis": 2}, dtype=cache.dtype, shape=cache.shape, version=OPSET)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    # queries carry the scale and `Attention` gets 1: the parser's product with all cached keys can then be taken out
    # again (`network`)
    inputs = (q * q.shape[-1] ** -0.5, k, v) if mask is None else (q * q.shape[-1] ** -0.5, k, v, mask)
    return symbolic("Attention", inputs, {"scale": 1.0}, dtype=q.dtype, shape=q.shape, version=OPSET)
