"""The variants of a library: processors that one machine code serves, and what it is compiled for."""

from __future__ import annotations

from typing import Any

TARGETS: dict[str, dict[str, Any]] = {
    "x86-64-v3": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"},
    "x86-64-vnni": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v4", "mattr": ["+avx512vnni"]},
    "aarch64": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon", "+dotprod"]},
}
"""TVM targets by variant: AVX2, FMA and F16C; AVX-512 with byte dot products; arm64 with byte dot products."""

X86_VECTOR = 32
"""Bytes of the narrowest vector, AVX2's, in which products with codes are written for x86-64."""
