"""Which layers cost most when they are stored as integers.

Every quantised layer's output is compared on the inputs that full precision gives it, which needs no second run of the
model. Where the reference lies in memory, each layer is then stored as integers alone, and the mean KL it brings is
measured: an output error says how wrong a layer is, KL says how much of that the model feels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from parity_tests.judging.metrics import kl_divergence
from parity_tests.judging.probes import Question
from parity_tests.judging.run_details import LayerCost
from parity_tests.reference.reference import TorchBackend
from parity_tests.reference.streamed import StreamedTorchBackend
from runtime_py.generation.session import Limits, Session
from runtime_py.preprocess.base import Processor

log = logging.getLogger("edgeproof.parity")

ROWS = 512
"""Input rows kept of every layer, evenly spread over all it sees."""

ALONE = 64
"""Layers measured alone, those with the largest output error first."""


def layer_costs(
    full: TorchBackend,
    stored: TorchBackend,
    assignments: Mapping[str, Mapping[str, str]],
    processor: Processor,
    asked: Sequence[Question],
    context: int,
) -> tuple[tuple[LayerCost, ...], str]:
    """The costs in no order, and which layers were not measured.

    Args:
        assignments: of the files that run here, by layer.
    """
    wanted = {name: row for name, row in assignments.items() if row.get("grid")}
    inputs = _inputs(full, list(wanted), processor, asked, context)
    costs = [
        LayerCost(name, row["storage"], row["grid"], _output_error(full, stored, name, inputs[name]))
        for name, row in wanted.items()
        if name in inputs
    ]
    notes = []
    if missing := [name for name in wanted if name not in inputs]:
        notes.append(f"{len(missing)} layers saw no input in these questions, e.g. {missing[0]}")
    if isinstance(full, StreamedTorchBackend):
        notes.append("KL of one layer alone needs the reference in memory")
        return tuple(costs), "; ".join(notes)
    costs.sort(key=lambda cost: -cost.error)
    if len(costs) > ALONE:
        notes.append(f"KL alone was measured for the {ALONE} layers with the largest output error of {len(costs)}")
    logits = _logits(full, processor, asked, context)
    for place, cost in enumerate(costs[:ALONE]):
        with _stored_alone(full, stored, cost.layer):
            full_logits = _logits(full, processor, asked, context)
        kl = np.concatenate([kl_divergence(a, b).ravel() for a, b in zip(logits, full_logits, strict=True)])
        costs[place] = replace(cost, kl=float(kl.mean()))
    return tuple(costs), "; ".join(notes)


def _logits(backend: TorchBackend, processor: Processor, asked: Sequence[Question], context: int) -> list[np.ndarray]:
    """Logits of every prompt position of every question."""
    logits = []
    for question in asked:
        images = processor.images(question.pictures) if question.pictures else []
        layout = processor.layout(question.input_ids, images)
        tokens = max(context, layout.input_ids.shape[1])
        session = Session(backend, processor, Limits(tokens, tokens))
        logits.append(session.prefill(session.merge(layout, session.features(images)), layout, "all"))
    return logits


def _module(backend: TorchBackend, layer: str) -> nn.Module | None:
    stage, _, path = layer.partition(".")
    try:
        return backend.stage(stage).get_submodule(path)
    except (AttributeError, KeyError):
        return None


def _inputs(
    backend: TorchBackend, layers: Sequence[str], processor: Processor, asked: Sequence[Question], context: int
) -> dict[str, Tensor]:
    """Inputs of the layers over all questions: (rows, columns), or (rows,) token ids of an embedding."""
    kept: dict[str, list[Tensor]] = {}
    hooks = []
    for name in layers:
        module = _module(backend, name)
        if module is not None:
            hooks.append(module.register_forward_pre_hook(_keeper(kept, name)))
    try:
        _logits(backend, processor, asked, context)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(parts) for name, parts in kept.items()}


def _keeper(kept: dict[str, list[Tensor]], name: str):
    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        rows = x.reshape(-1, x.shape[-1]) if x.is_floating_point() else x.reshape(-1)
        step = -(-rows.shape[0] // ROWS)
        if rows.shape[0]:
            kept.setdefault(name, []).append(rows[::step].clone())

    return keep


@torch.inference_mode()
def _output_error(full: TorchBackend, stored: TorchBackend, layer: str, x: Tensor) -> float:
    """Length of the output's error over the output's length, both over all rows."""
    weight = full.weights.tensor(f"{layer}.weight").float()
    error = stored.weights.tensor(f"{layer}.weight").float() - weight
    if x.is_floating_point():
        x = x.float().cpu()
        size, off = (x @ weight.flatten(1).T).norm(), (x @ error.flatten(1).T).norm()
    else:
        size, off = weight[x.cpu()].norm(), error[x.cpu()].norm()
    return float(off / size) if size > 0 else 0.0


@contextmanager
def _stored_alone(full: TorchBackend, stored: TorchBackend, layer: str) -> Iterator[None]:
    """While inside, one layer of ``full`` has its weight as ``stored`` has it."""
    module = _module(full, layer)
    assert module is not None
    weight = module.get_parameter("weight")
    changed = stored.weights.tensor(f"{layer}.weight").to(weight.device, weight.dtype).reshape(weight.shape)
    module.weight = nn.Parameter(changed, requires_grad=False)
    try:
        yield
    finally:
        module.weight = weight
