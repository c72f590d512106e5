"""Which models the field's tools can hold: those whose graphs take what every tool passes, and nothing else.

transformers.js and onnxruntime-genai pass pixel values to the vision encoder, and embeddings, a mask, positions and the
cache to the decoder. onnxruntime-genai passes the grid of patches too, and positions of three axes, to models of Qwen2-VL's
kind. Whatever else a model's graphs take only its own processor can work out (`runtime_py.preprocess`).
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from export.modules.vision.specs import RotaryVisionSpec
from export.specs import ModelSpec
from export.stages import contracts
from runtime_py.backends.records import INT8_CACHE
from runtime_py.contracts import CONNECTOR, DECODER, VISION
from runtime_py.preprocess.spliced import PLACEHOLDER

KNOWN = {
    VISION: ("pixel_values",),
    CONNECTOR: ("vision_features",),
    DECODER: ("inputs_embeds", "attention_mask", "position_ids", "logit_positions"),
}
CACHE, ANGLES = "past_key_values.", "rotary_angles"

UNKNOWN_CACHES = (INT8_CACHE,)
"""Dtypes of the cache that no tool was ever seen to hold."""


class Tool(StrEnum):
    """A tool that opens graphs; its value is its name for people."""

    TRANSFORMERS_JS = "transformers.js"
    GENAI = "onnxruntime-genai"


def obstacles(spec: ModelSpec, tool: Tool, cache: str = "") -> tuple[str, ...]:
    """What keeps a tool from holding this model, for people; empty when nothing does.

    Args:
        cache: dtype of the key/value cache; "" for one that every tool makes.
    """
    stages = contracts(spec)
    grids = tool is Tool.GENAI and tower_by_grid(spec) is not None
    reasons = []
    for stage, known in KNOWN.items():
        taken = (*known, ANGLES) if grids else known
        names = [name for name in stages[stage].input_names() if name not in taken and not name.startswith(CACHE)]
        if names:
            reasons.append(f"{stage} takes {', '.join(names)}")
    axes = len(spec.decoder.rope.sections)
    if axes and not grids:
        reasons.append(f"position_ids have {axes} axes")
    if cache in UNKNOWN_CACHES:
        reasons.append(f"the cache is {cache}")
    return tuple(reasons)


def tower_by_grid(spec: ModelSpec) -> RotaryVisionSpec | None:
    """The tower of a model whose pictures are patches of any grid, and whose positions have time, row and column (Qwen2-VL);
    None of others.
    """
    tower = spec.vision
    return tower if isinstance(tower, RotaryVisionSpec) and len(spec.decoder.rope.sections) == 3 else None


def joined_file(tower: Path) -> Path:
    """The graph of vision encoder and connector in one: beside the first, by the name under which a browser looks for it."""
    return tower.with_name(tower.name.replace("vision_tower", "vision_encoder"))


def picture_mark(spec: ModelSpec) -> str | None:
    """The text that stands for one row of a picture in a prompt; None where the model has no text for it."""
    picture = spec.runtime["prompt"]["picture"]
    return None if picture.get("spliced") else picture.get("row") or None


def placeholder(spec: ModelSpec) -> int:
    """The id that every row of a picture has in a prompt, and whose embedding that row replaces."""
    mark = picture_mark(spec)
    return PLACEHOLDER if mark is None else int(spec.runtime["prompt"]["marks"][mark])
