"""Bit packing of codes as ONNX stores them: along the input axis, low bits of a byte first.

Sources: onnxruntime docs/ContribOperators.md (MatMulNBits, GatherBlockQuantized); onnx docs/Operators.md and
onnx/onnx.proto3 (INT4: two to a byte, first element in the low half). MLC packs its own way (export/backends/mlc).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def pack_unsigned(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes (rows, columns) of 4 or 8 bits to bytes (rows, ceil(columns * bits / 8)); an odd tail is filled with 0."""
    if bits == 8:
        return codes
    if bits != 4:
        raise ValueError(f"codes of {bits} bits; 4 or 8 can be packed")
    import torch

    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    # shifts of four bytes take a quarter of the time that those of two take
    words = codes.contiguous().view(torch.int16 if codes.shape[1] % 4 else torch.int32)
    # a pair's low byte, which is the first on little-endian machines: its code, and the second moved down by four bits
    return (words >> 4).bitwise_or_(words).view(torch.int16).to(torch.uint8)


def unpack_unsigned(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The inverse of `pack_unsigned`: uint8 codes (rows, columns)."""
    import torch

    if bits == 8:
        return packed
    return torch.stack([packed & 15, packed >> 4], dim=2).flatten(1)[:, :columns]


def pack_signed(codes: Tensor, bits: int) -> Tensor:
    """Unsigned codes (rows, columns) around the zero point 2 ** (bits - 1) to two's-complement bytes (ONNX INT4, INT8)."""
    # flipping the top bit subtracts 2 ** (bits - 1) in two's complement
    return pack_unsigned(codes ^ (1 << (bits - 1)), bits)
