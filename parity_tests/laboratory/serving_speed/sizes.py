"""The sizes of a checkpoint, as far as a model of the same size for another engine needs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runtime_py.errors import UsageError

if TYPE_CHECKING:
    from export.specs import DecoderSpec


def sizes_of(model: Path, context: int) -> dict[str, int]:
    """What `llama_files` writes.

    Raises:
        UsageError: the model is no MiniCPM-V 1.0, whose tower llama.cpp knows too.
    """
    from export.checkpoint.opened import open_folder
    from export.modules.connectors.specs import ResamplerSpec
    from export.modules.vision.specs import VisionSpec

    spec = open_folder(model).spec
    d, v, c = spec.decoder, spec.vision, spec.connector
    if not (isinstance(c, ResamplerSpec) and isinstance(v, VisionSpec)) or v.grid is None:
        raise UsageError(f"{model} is {spec.family} {spec.variant}", "a MiniCPM-V 1.0", "see middle_checkpoint")
    return {
        **decoder_sizes(d),
        "context": context,
        "vision_width": v.width,
        "vision_heads": v.heads,
        "vision_layers": v.layers,
        "vision_mlp": v.mlp_width,
        "side": v.grid[0] * v.patch_size,
        "patch": v.patch_size,
        "queries": c.queries,
    }


def decoder_sizes(decoder: DecoderSpec) -> dict[str, int]:
    """The decoder's part of them."""
    return {
        "hidden": decoder.hidden,
        "mlp": decoder.mlp_width,
        "heads": decoder.heads,
        "kv_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "layers": decoder.layers,
        "vocabulary": decoder.vocabulary,
    }
