"""Golden arrays of routing: which tokens a visual expert takes (CogVLM2), and which low-rank expert a request gets (Awaker).

A gate gives ``scale * w * w`` to the channels of its chosen expert and ``scale * (1 - w)`` to the shared one; the golden has
w at the chosen expert's place. A choice is compared as tokens are: other than the golden's only where the two best shares
lie within the permitted error. Where the choice differs, ``gates`` compares w alone, since the choice is judged already.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from export.specs import ModelSpec
from parity_tests.backends.examiner import NotShown
from parity_tests.golden.case import GoldenArray, GoldenCase
from parity_tests.golden.inside import AskedOnce, inside
from parity_tests.judging.metrics import Kind, relative_to
from parity_tests.judging.probes import PREPROCESS
from parity_tests.reference.checkpoint_side import Checkpoint, reference
from runtime_py.contracts import DECODER, EMBED
from runtime_py.preprocess.base import ReadsEmbeddings
from runtime_py.preprocess.cogvlm2 import routed_to_vision

_ROUTED = re.compile(r"(gates|expert|gate_input)_(prefill|decode)")

Routed = tuple[str, Kind, np.ndarray, Mapping[str, float]]
"""Stage, kind, values, further metrics."""


def routing_array(case: GoldenCase, array: GoldenArray, once: AskedOnce, checkpoint: Checkpoint) -> Routed | None:
    """The values behind a golden array of routing, or None when it is none.

    Raises:
        NotShown: the backend shows nothing inside its decoder.
    """
    if array.rest == "expert_is_vision":
        return PREPROCESS, Kind.EXACT, routed_to_vision(once.layout.image_rows)[None], {}
    match = _ROUTED.fullmatch(array.rest)
    if match is None:
        return None
    what, phase = match.groups()
    given = gate_input(once, phase)
    if what == "gate_input":
        return EMBED, Kind.EMBEDS, given, {}
    weights = chosen_weights(once, given, checkpoint)
    golden = case.outputs[f"{array.prefix}expert_{phase}"]
    if what == "expert":
        experts = weights.argmax(axis=-1)
        return DECODER, Kind.TOKENS, experts, _margins(case, array.prefix, phase, golden, experts, checkpoint)
    return DECODER, Kind.FEATURES, _at(golden, weights), {}


def gate_input(once: AskedOnce, phase: Any) -> np.ndarray:
    """float32 (1, hidden), what the gates of this side's decoder read in a phase."""
    processor = once.side.processor
    if not isinstance(processor, ReadsEmbeddings):
        raise NotShown("this model has no gates")
    raw = once.session.embed(once.layout.input_ids)
    return processor.embedding_inputs(once.layout, once.merged, raw, phase)["gate_input"]


def chosen_weights(once: AskedOnce, given: np.ndarray, checkpoint: Checkpoint) -> np.ndarray:
    """float32 (layers, gates, experts), w at the chosen expert and zero elsewhere."""
    if not checkpoint.spec.decoder.layer_kind.rounded_gates:
        raise NotShown("this model has no gates")
    gates = layer_gates(reference(checkpoint.spec, checkpoint.weights).stage(DECODER), checkpoint.spec)
    paths = [[f"layers.{layer}.gates.{slot}" for slot in row] for layer, row in enumerate(gates)]
    (inputs,) = once.stage_calls(DECODER)
    values = inside(once.side, DECODER, {**inputs, "gate_input": given}, [path for row in paths for path in row])
    return np.stack(
        [
            np.stack([gate.top_share(values[path]) for gate, path in zip(row.values(), named, strict=True)])
            for row, named in zip(gates, paths, strict=True)
        ]
    )


def layer_gates(decoder: Any, spec: ModelSpec) -> list[dict[str, Any]]:
    """By layer the gates of a decoder's module, in the golden's order (o_proj, gate_proj)."""
    names = spec.decoder.layer_kind.rounded_gates
    return [{name: getattr(layer.gates, name) for name in names} for layer in decoder.layers]


def _at(experts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The chosen weights, put at ``experts`` (layers, gates)."""
    placed = np.zeros_like(weights)
    np.put_along_axis(placed, experts[..., None], weights.max(axis=-1, keepdims=True), axis=-1)
    return placed


def _margins(
    case: GoldenCase, prefix: str, phase: str, golden: np.ndarray, experts: np.ndarray, checkpoint: Checkpoint
) -> dict[str, float]:
    """How much better the golden's experts are than those found, in the reference's shares."""
    if np.array_equal(golden, experts):
        return {"split_margin": 0.0, "split_relative": 0.0}
    import torch

    decoder = reference(checkpoint.spec, checkpoint.weights).stage(DECODER)
    given = torch.from_numpy(case.outputs[f"{prefix}gate_input_{phase}"])
    with torch.inference_mode():
        gates = [gate for layer in layer_gates(decoder, checkpoint.spec) for gate in layer.values()]
        rows = [gate.shares(given)[0].numpy() for gate in gates]
    shares = np.stack(rows)
    places = np.arange(len(shares))
    margin = float((shares[places, golden.reshape(-1)] - shares[places, experts.reshape(-1)]).max())
    return {"split_margin": margin, "split_relative": relative_to(margin, shares)}
