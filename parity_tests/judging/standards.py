"""Sorts of comparison, by what both sides differ in, and what a limit on a figure is; `parity_tests.thresholds` has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from parity_tests.judging.metrics import HIGHER_IS_BETTER, Kind


class Standard(StrEnum):
    """A sort of comparison, by what the two sides differ in."""

    GOLDEN = "golden-fp32"  # the published code's arrays, both sides float32
    GOLDEN_FLIPPED = "golden-fp32-rounding-flip"  # the same, a gate logit shown to round the other way
    FLIPPED = "rounding-flip"  # package against reference in float32, a gate logit shown to round the other way
    FP32 = "fp32"  # package against reference, both float32, any checkpoint
    FP16 = "fp16"  # float16 package against the float32 reference
    STORED_FLOAT32 = "implementation-float32"  # against a reference with the stored numbers; arithmetic in float32
    STORED_FLOAT16 = "implementation-float16"  # the same; arithmetic in float16
    STORED_INT8 = "implementation-int8"  # the same; inputs of layers rounded to 8 bits by both sides
    CACHE_INT8 = "implementation-int8-cache"  # the same; keys and values rounded to 8 bits by both sides
    KERNELS_INT8 = "kernels-int8"  # inputs of int4 layers rounded to 8 bits by the package's kernels alone
    MOVED = "moved-by-rounding"  # the same, on a question that PyTorch with inputs so rounded is moved far on
    SECOND_OPINION = "second-opinion"  # reference against transformers, both float32 PyTorch
    INT4_LOSS = "int4-loss"  # dequantised reference against full precision

    @classmethod
    def _missing_(cls, value: object) -> Standard | None:
        # former names, which a user's file of thresholds may still have; stored runs of their time are refused
        return {"golden-fp32-gate-crossing": cls.GOLDEN_FLIPPED, "gate-crossing": cls.FLIPPED}.get(str(value))


@dataclass(frozen=True)
class Limit:
    """A metric and its bound: the highest allowed value, or the lowest where higher is better."""

    metric: str
    bound: float
    reason: str

    def holds(self, metrics: Mapping[str, float]) -> bool:
        """False also when the metric is missing or not a number."""
        value = metrics.get(self.metric, float("nan"))
        return value >= self.bound if HIGHER_IS_BETTER[self.metric] else value <= self.bound


Limits = tuple[Limit, ...]
Table = Mapping[Standard, Mapping[Kind, Limits]]
