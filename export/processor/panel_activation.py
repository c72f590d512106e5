"""Activations of towers' MLPs, in vectors of float32."""

from __future__ import annotations

import math

from tvm import tirx
from tvm.script import tirx as T

from export.processor.online_softmax import exp2
from export.processor.token_panels import LANES, every, kept

NEGLIGIBLE = -126.0
"""An exponent of two below which a power counts as zero."""

ERF_STEP = 0.3275911
ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
"""erf(x) = 1 - t (polynomial in t) e^-x^2 with t = 1 / (1 + ERF_STEP x), for x from 0, within 1.5e-7 (Abramowitz and Stegun,
Handbook of Mathematical Functions, 7.1.26)."""

TANH_FACTOR, TANH_CUBE = math.sqrt(2 / math.pi), 0.044715
QUICK = 1.702


def activated(x: tirx.Expr, kind: str) -> tirx.Expr:
    """The activation of a vector by its name in `export.specs.Activation`."""
    x = kept(x)
    match kind:
        case "gelu":
            return gelu(x)
        case "gelu_tanh":
            # 0.5 (1 + tanh(y)) is the logistic function of 2 y
            return x * logistic(every(2 * TANH_FACTOR) * x * (every(1.0) + every(TANH_CUBE) * x * x))
        case "quick_gelu":
            return x * logistic(every(QUICK) * x)
        case "silu":
            return x * logistic(x)
    raise ValueError(f"no activation is written for {kind}")


def gelu(x: tirx.Expr) -> tirx.Expr:
    """x (1 + erf(x / sqrt(2))) / 2, by what is small for either sign."""
    size = kept(T.max(x, -x) * every(math.sqrt(0.5)))
    step = kept(every(1.0) / (every(1.0) + every(ERF_STEP) * size))
    value = every(ERF[0])
    for factor in ERF[1:]:
        value = value * step + every(factor)
    half = kept(every(0.5) * value * step * power(-(size * size)))
    return x * tirx.Select(x < every(0.0), half, every(1.0) - half)


def logistic(x: tirx.Expr) -> tirx.Expr:
    """1 / (1 + e^-x), by the power of -|x|, which never grows too large."""
    x = kept(x)
    small = kept(power(-T.max(x, -x)))
    return tirx.Select(x < every(0.0), small, every(1.0)) / (every(1.0) + small)


def power(x: tirx.Expr) -> tirx.Expr:
    """e^x for x up to 0."""
    exponent = kept(x * every(math.log2(math.e)))
    return tirx.Select(exponent < every(NEGLIGIBLE), every(0.0), exp2(exponent, LANES))
