"""The quantisation names of MLC and what each stores; no library is imported here.

Source: mlc-ai/mlc-llm, python/mlc_llm/quantization/quantization.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime_py.errors import UsageError


@dataclass(frozen=True)
class Scheme:
    """One MLC quantisation.

    Attributes:
        model_dtype: dtype of activations, scales and unquantised parameters.
        grid: name in export.quantisation.grids of the int4 grid, or "" when nothing is quantised.
        transposed: linear weights are stored (input words, output); embeddings never are.
        whole: roles that stay unquantised although the scheme quantises.
    """

    name: str
    model_dtype: str
    grid: str = ""
    transposed: bool = False
    whole: frozenset[str] = frozenset()


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("q4f16_1", "float16", "q4f16_1"),
        Scheme("q4f16_0", "float16", "q4f16_1", transposed=True),
        Scheme("q4f16_2", "float16", "q4f16_1", whole=frozenset({"embedding", "head"})),
        Scheme("q4f32_1", "float32", "q4f32_1"),
        Scheme("q0f16", "float16"),
        Scheme("q0bf16", "bfloat16"),
        Scheme("q0f32", "float32"),
    )
}

LIBRARY_SCHEMES = ("q4f16_1", "q4f32_1", "q0f16", "q0f32")
"""Schemes that a model library is built for; the others exist for their weight directories."""

PRECISIONS = {"int4": "q4f16_1", "fp16": "q0f16", "fp32": "q0f32"}
"""The product's precision names, beside MLC's own."""


def scheme_of(precision: str) -> Scheme:
    """The scheme of a ``--precision`` value, ours or MLC's own name.

    Raises:
        UsageError: no model library is built in this precision.
    """
    name = PRECISIONS.get(precision, precision)
    if name not in LIBRARY_SCHEMES:
        raise UsageError(
            f"precision {precision!r} is not built for phones",
            "one of " + ", ".join((*PRECISIONS, *LIBRARY_SCHEMES)),
            "choose one of these with --precision",
        )
    return SCHEMES[name]
