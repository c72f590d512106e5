"""Scales of a key/value cache in bytes, one a channel of every head: chosen from samples, on disk, and as parameters.

A channel's scale is the largest size that its numbers had over the samples, times `MARGIN`, over `STEPS`. Keys are kept
rotated: a channel and the one half a head away turn together, and at a position that no sample had either may become as
long as both, so the size of a key's channel is the length of the pair. What is larger than a scale holds is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.package.aside import written_aside
from export.quantisation.codes import WeightProvider
from runtime_py.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from export.specs import DecoderSpec

KEY, VALUE = "key_scale", "value_scale"
STEPS, LOWEST = 127, -128
"""Largest and smallest integer of a byte."""

MARGIN = 1.0
"""What text beyond the samples may have more: docs/results/decode.md has the figures."""

FILE = "cache_scales.safetensors"
"""Of a backend's folder in a calibration."""


def scale_name(layer: int, half: str) -> str:
    """Canonical name of a layer's scales; ``half`` is `KEY` or `VALUE`."""
    return f"decoder.layers.{layer}.attention.attend.{half}"


@dataclass(frozen=True)
class CacheScales:
    """Scales of all layers: float32 (kv_heads, head_dim) by `scale_name`."""

    tensors: Mapping[str, Tensor]

    def of(self, attention: str) -> tuple[Tensor, Tensor]:
        """Of keys and of values of one layer's attention, ``decoder.layers.0.attention.attend``."""
        return self.tensors[f"{attention}.{KEY}"], self.tensors[f"{attention}.{VALUE}"]

    def check(self, decoder: DecoderSpec) -> None:
        """Hold the scales against a model.

        Raises:
            UsageError: they are of other layers or heads, or one is no positive number.
        """
        shape = (decoder.kv_heads, decoder.head_dim)
        wanted = {scale_name(layer, half) for layer in range(decoder.layers) for half in (KEY, VALUE)}
        wrong = sorted(wanted ^ set(self.tensors))
        wrong += [name for name, scale in self.tensors.items() if tuple(scale.shape) != shape]
        wrong += [name for name, scale in self.tensors.items() if not bool(((scale > 0) & scale.isfinite()).all())]
        if wrong:
            others = f" and {len(wrong) - 1} more" if wrong[1:] else ""
            raise UsageError(
                f"the stored scales of the cache do not fit the export: {wrong[0]}{others}",
                f"positive numbers {list(shape)} for each of {decoder.layers} layers",
                "calibrate with the model that is exported",
            )

    @classmethod
    def of_sizes(cls, sizes: Mapping[str, Tensor]) -> CacheScales:
        """From the largest sizes (kv_heads, head_dim); a channel that was always zero has the scale 1."""
        import torch

        scales = {name: MARGIN * size / STEPS for name, size in sizes.items()}
        return cls({name: torch.where(scale > 0, scale, 1.0) for name, scale in scales.items()})


def rounded(x: Tensor, scale: Tensor) -> Tensor:
    """To bytes and back: x (batch, kv_heads, tokens, head_dim), scale (kv_heads, head_dim); ties to the even integer.

    Source: measured with ONNX Runtime 1.32, com.microsoft.GroupQueryAttention over an int8 cache.
    """
    import torch

    return torch.round(x / scale[:, None]).clamp(LOWEST, STEPS) * scale[:, None]


def write_scales(path: Path, scales: CacheScales) -> None:
    """Write the file through a temporary name; equal scales give equal bytes."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        save_file({name: scales.tensors[name].contiguous() for name in sorted(scales.tensors)}, aside)


def read_scales(path: Path) -> CacheScales:
    """What `write_scales` wrote."""
    from safetensors.torch import load_file

    return CacheScales(load_file(path))


class ScaledWeights:
    """A WeightProvider with the scales among the parameters, (kv_heads, 1, width) as GroupQueryAttention takes them.

    Args:
        width: of a head in the cache; channels beyond the model's own are zeros, and have the scale 1.
    """

    def __init__(self, weights: WeightProvider, scales: CacheScales, width: int) -> None:
        from torch.nn import functional as F

        self.weights = weights
        self.scales = {
            name: F.pad(scale, (0, width - scale.shape[1]), value=1.0)[:, None] for name, scale in scales.tensors.items()
        }

    def shape(self, target: str) -> tuple[int, ...]:
        return tuple(self.scales[target].shape) if target in self.scales else self.weights.shape(target)

    def tensor(self, target: str) -> Tensor:
        return self.scales[target] if target in self.scales else self.weights.tensor(target)

    def rows(self, target: str, start: int, stop: int | None) -> Tensor:
        return self.scales[target][start:stop] if target in self.scales else self.weights.rows(target, start, stop)
