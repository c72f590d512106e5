"""A gate put on a float16 boundary: a golden from its other side passes and says so; one from farther away fails."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from parity_tests.backends.registry import OF_THE_REFERENCE
from parity_tests.check.candidate import Candidate
from parity_tests.conftest import GOLDENS
from parity_tests.golden.case import GoldenCase, question, read_case
from parity_tests.golden.inside import AskedOnce
from parity_tests.golden.rounding_flip import MOVED, NOISE, PHASES, MovedGateInput, offsets_to_golden, offsets_to_reference
from parity_tests.golden.routing import gate_input, layer_gates
from parity_tests.golden.side import against_golden, ask
from parity_tests.judging.judge import Verdict, judge
from parity_tests.judging.results import Comparison, Run
from parity_tests.judging.standards import Standard
from parity_tests.reference.checkpoint_side import Checkpoint, open_checkpoint, reference
from runtime_py.contracts import DECODER
from runtime_py.generation.session import Limits

AWAKER, PROMPT = GOLDENS / "awaker2.5-vl", "p0_"
BIAS = {"out": "self_attn.o_proj.w_gate.bias", "mlp": "mlp.gate_proj.w_gate.bias"}
KEPT = ("prefill_logits", "step_logits", "greedy_ids", "inputs_embeds", "hidden_after_layer_0")

GATE = (1, "mlp")
"""Layer and slot of a gate whose winner has three quarters: rounding its logit otherwise changes its weight."""

RAISED = 2.0
"""Added to all logits of the gate, which changes no share but makes float16 numbers lie far enough apart to change one."""


def side_of(checkpoint: Checkpoint) -> Candidate:
    """The reference itself as the side under test."""
    backend = reference(checkpoint.spec, checkpoint.weights)
    manifest = {"family": "awaker2.5-vl", "precision": "fp32", "runtime": checkpoint.spec.runtime}
    processor = checkpoint.processor()
    return Candidate(checkpoint.folder, manifest, OF_THE_REFERENCE, backend, processor, None, Limits(512, 512))


def gate_at_boundary(
    folder: Path,
    distance: float,
    read: torch.Tensor | None = None,
    gate: tuple[int, str] = GATE,
    raised: float = RAISED,
) -> Checkpoint:
    """The golden's checkpoint with one gate logit ``beside`` a boundary between two float16 numbers.

    Args:
        read: gate input (1, hidden) for which it lies there; None for that of the golden's first prompt.
        gate: layer and slot.
        raised: added to all logits of the gate; the higher, the more a rounding step moves.
    """
    folder = Path(shutil.copytree(AWAKER, folder))
    checkpoint, case = open_checkpoint(folder), read_case(folder)
    layer, slot = gate
    decoder = side_of(checkpoint).backend.stage(DECODER)  # type: ignore[attr-defined]
    with torch.inference_mode():
        given = torch.from_numpy(case.outputs[PROMPT + "gate_input_prefill"]) if read is None else read
        value = getattr(decoder.layers[layer].gates, slot).logits(given)[0] + raised
    expert = int(value.argmax())
    half = value[expert].half()
    boundary = (half.item() + torch.nextafter(half, torch.tensor(torch.inf, dtype=torch.float16)).item()) / 2
    tensors = load_file(folder / "model.safetensors")
    bias = tensors[f"base_model.model.model.layers.{layer}.{BIAS[slot]}"]
    bias += raised
    bias[expert] += boundary + distance - value[expert].item()
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder)


def golden_of(checkpoint: Checkpoint, move: float) -> GoldenCase:
    """What the checkpoint says to the first prompt when the gate's winning logit is ``move`` higher."""
    old, side = read_case(checkpoint.folder), side_of(checkpoint)
    decoder = side.backend.stage(DECODER)  # type: ignore[attr-defined]

    given = torch.from_numpy(old.outputs[PROMPT + "gate_input_prefill"])
    layer, slot = GATE
    gate = getattr(decoder.layers[layer].gates, slot)
    slope = torch.func.jacrev(lambda x: gate.logits(x)[0].max())(given)
    offsets = {"prefill": (slope * move / slope.square().sum()).detach().numpy(), "decode": np.zeros_like(given.numpy())}
    moved = side.with_processor(MovedGateInput(side.processor, offsets))  # type: ignore[arg-type]
    said = ask(old, moved, (PROMPT,)).recordings[PROMPT]
    outputs = {PROMPT + name: array for name, array in said.arrays.items() if name in KEPT}
    for phase in PHASES:
        name = f"{PROMPT}gate_input_{phase}"
        outputs[name] = old.outputs[name]
        read = torch.from_numpy(outputs[name] + offsets[phase])
        shares = np.stack(
            [[_sparse(gate, read) for gate in layer.values()] for layer in layer_gates(decoder, checkpoint.spec)]
        )
        outputs[f"{PROMPT}gates_{phase}"], outputs[f"{PROMPT}expert_{phase}"] = shares, shares.argmax(axis=-1)

    inputs = {name: array for name, array in old.inputs.items() if not name.startswith(("p1_", "p2_"))}
    return GoldenCase(old.folder, inputs, outputs, (PROMPT,))


def _sparse(gate, given: torch.Tensor) -> np.ndarray:
    shares = gate.shares(given)[0].detach().numpy().astype(np.float16)
    return np.where(shares == shares.max(), shares, np.float16(0))


def judged(case: GoldenCase, checkpoint: Checkpoint):
    comparisons: list[Comparison] = against_golden("golden", case, side_of(checkpoint), Standard.GOLDEN, checkpoint)
    run = Run("case", "awaker2.5-vl", "Awaker2.5-VL", "cpu", "fp32", "torch", tuple(comparisons))
    return judge(run)


# Two units in the last place of a logit of 6.5 are 1e-6: the order of a sum alone moves it that far on some processors.
@pytest.mark.parametrize("distance", [2e-6, 3e-6])
def test_a_golden_from_the_other_side_of_a_boundary_passes_and_says_so(distance: float, tmp_path: Path):
    checkpoint = gate_at_boundary(tmp_path / "case", -distance)
    case = golden_of(checkpoint, 2 * distance)
    result = judged(case, checkpoint)
    parts = {(judged.comparison.name, judged.comparison.standard): judged for judged in result.comparisons}
    assert result.verdict is Verdict.PASS, result.first_failure
    crossed = parts["golden", Standard.GOLDEN_FLIPPED]
    assert MOVED in crossed.comparison.question
    errors = {probe.measurement.probe: probe.measurement.metrics["max_abs"] for probe in crossed.probes}
    assert set(errors) == {PROMPT + n for n in ("prefill_logits", "step_logits", "gates_prefill", "gates_decode")}
    assert 1e-4 < errors[PROMPT + "gates_prefill"] < 2.5e-3
    tight = [judged for name, judged in parts.items() if name[1] is Standard.GOLDEN]
    assert {probe.verdict for judged in tight for probe in judged.probes} == {Verdict.PASS}


def test_the_same_side_needs_no_rounding_flip(tmp_path: Path):
    checkpoint = gate_at_boundary(tmp_path / "case", -2e-6)
    result = judged(golden_of(checkpoint, 0.0), checkpoint)
    assert [judged.comparison.standard for judged in result.comparisons] == [Standard.GOLDEN]
    assert result.verdict is Verdict.PASS


def test_a_gate_that_is_off_without_a_boundary_fails(tmp_path: Path):
    checkpoint = gate_at_boundary(tmp_path / "case", -1e-4)
    case = golden_of(checkpoint, 2e-4)
    result = judged(case, checkpoint)
    assert result.verdict is Verdict.FAIL
    assert "gates_prefill" in result.first_failure or "logits" in result.first_failure


def test_another_fault_next_to_a_rounding_flip_fails(tmp_path: Path):
    checkpoint = gate_at_boundary(tmp_path / "case", -1e-6)
    case = golden_of(checkpoint, 2e-6)
    logits = case.outputs[PROMPT + "prefill_logits"].copy()
    logits[0, -1, 0] += 2e-3
    case = GoldenCase(case.folder, case.inputs, {**case.outputs, PROMPT + "prefill_logits": logits}, case.prefixes)
    assert offsets_to_golden(case, PROMPT, checkpoint) is not None
    assert judged(case, checkpoint).verdict is Verdict.FAIL


@pytest.mark.parametrize("distance", [-3e-6, 3e-6])
def test_a_reference_near_a_boundary_is_moved_away_from_it_on_its_own_side(distance: float, tmp_path: Path):
    checkpoint = gate_at_boundary(tmp_path / "case", distance)
    side = side_of(checkpoint)
    case = read_case(checkpoint.folder)
    once = AskedOnce(side, question(case, PROMPT, side.processor))
    offsets = offsets_to_reference(once, checkpoint)
    assert offsets is not None
    layer, slot = GATE
    gate = getattr(side.backend.stage(DECODER).layers[layer].gates, slot)  # type: ignore[attr-defined]
    given = gate_input(once, "prefill")
    with torch.inference_mode():
        before, after = (gate.logits(torch.from_numpy(x))[0].max().item() for x in (given, given + offsets["prefill"]))
        assert torch.equal(*(gate.shares(torch.from_numpy(x)) for x in (given, given + offsets["prefill"])))
    assert np.sign(after - before) == np.sign(distance)
    assert abs(after - before) < 3 * NOISE * after
