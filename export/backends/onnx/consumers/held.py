"""Which models the field's tools can hold: those whose graphs take what every tool passes, and nothing else.

transformers.js and onnxruntime-genai pass pixel values to the vision encoder, and embeddings, a mask, positions and the
cache to the decoder. Whatever else a model's graphs take only its own processor can work out (`runtime_py.preprocess`).
"""

from __future__ import annotations

from export.specs import ModelSpec
from export.stages import contracts
from runtime_py.contracts import CONNECTOR, DECODER, VISION
from runtime_py.preprocess.spliced import PLACEHOLDER

KNOWN = {
    VISION: ("pixel_values",),
    CONNECTOR: ("vision_features",),
    DECODER: ("inputs_embeds", "attention_mask", "position_ids", "logit_positions"),
}
CACHE = "past_key_values."


def obstacles(spec: ModelSpec) -> tuple[str, ...]:
    """What keeps tools from holding this model, for people; empty when nothing does."""
    stages = contracts(spec)
    reasons = []
    for stage, known in KNOWN.items():
        names = [name for name in stages[stage].input_names() if name not in known and not name.startswith(CACHE)]
        if names:
            reasons.append(f"{stage} takes {', '.join(names)}")
    if axes := len(spec.decoder.rope.sections):
        reasons.append(f"position_ids have {axes} axes")
    return tuple(reasons)


def picture_mark(spec: ModelSpec) -> str | None:
    """The text that stands for one row of a picture in a prompt; None where the model has no text for it."""
    picture = spec.runtime["prompt"]["picture"]
    return None if picture.get("spliced") else picture.get("row") or None


def placeholder(spec: ModelSpec) -> int:
    """The id that every row of a picture has in a prompt, and whose embedding that row replaces."""
    mark = picture_mark(spec)
    return PLACEHOLDER if mark is None else int(spec.runtime["prompt"]["marks"][mark])
