"""What a graph says of itself: who made it, of what, and what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.specs import ModelSpec
from runtime_py.version import VERSION

PRODUCER = "edgeproof"

STAGES = {
    "vision_encoder": "patches of pictures",
    "connector": "rows of a prompt from the patches of pictures",
    "embed_tokens": "embeddings of tokens",
    "decoder": "logits and the grown key/value cache",
    "pictures": "rows of a prompt from pictures: the vision encoder and the connector in one",
    "embedding": "embeddings of tokens, with the rows of pictures in their places",
    "last_logits": "logits of the last token and the grown key/value cache",
}
"""What each graph gives, by stage or by what it is for."""


def metadata(spec: ModelSpec, graph: str, precision: str) -> dict[str, str]:
    """metadata_props of a graph (ModelProto), for people who find it alone."""
    return {"family": spec.family, "variant": spec.variant, "stage": graph, "precision": precision, "gives": STAGES[graph]}


def describe(model: Any, notes: Mapping[str, str]) -> None:
    """Write notes and the producer into an onnx.ModelProto; equal packages stay equal byte for byte."""
    model.producer_name, model.producer_version = PRODUCER, VERSION
    del model.metadata_props[:]
    for key, value in notes.items():
        model.metadata_props.add(key=f"{PRODUCER}.{key}", value=value)
    names = ", ".join(value.name for value in model.graph.output if not value.name.startswith("present."))
    model.doc_string = f"{notes['family']} {notes['variant']}, {notes['precision']}: {names} ({notes['gives']})"
    model.graph.name = notes["stage"]
