"""Element types: the codes of the safetensors format beside PyTorch's names and their sizes.

Source: huggingface/safetensors, safetensors/src/tensor.rs (the ``Dtype`` enumeration and its bit sizes).
"""

from __future__ import annotations

SAFETENSORS_DTYPES: dict[str, tuple[str, int]] = {
    "BOOL": ("bool", 8),
    "F4": ("float4_e2m1fn_x2", 4),
    "F6_E2M3": ("float6_e2m3fn", 6),
    "F6_E3M2": ("float6_e3m2fn", 6),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "I16": ("int16", 16),
    "U16": ("uint16", 16),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "I32": ("int32", 32),
    "U32": ("uint32", 32),
    "F32": ("float32", 32),
    "C64": ("complex64", 64),
    "F64": ("float64", 64),
    "I64": ("int64", 64),
    "U64": ("uint64", 64),
}
"""Format code to (PyTorch's name, bits of one stored element). PyTorch has no 6-bit floats: they are listed, not read."""

ITEM_BYTES: dict[str, int] = {name: bits // 8 for name, bits in SAFETENSORS_DTYPES.values() if bits >= 8} | {
    "float4_e2m1fn_x2": 1,
    "complex32": 4,
    "complex128": 16,
}
"""Bytes of one element as PyTorch counts elements (two 4-bit floats make one)."""

SAFETENSORS_CODES: dict[str, str] = {name: code for code, (name, bits) in SAFETENSORS_DTYPES.items() if bits >= 8}
"""PyTorch's name to the format code, for writing."""
