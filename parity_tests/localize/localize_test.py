"""Deliberately broken packages: the report must name the stage and the block that was broken, and fail."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from parity_tests.check.package_check import CheckOptions, check
from parity_tests.conftest import GOLDENS, ExportedPackage
from parity_tests.judging.judge import Verdict
from parity_tests.laboratory.onnx_tamper import tamper
from runtime_py import package as packages

Change = Callable[[np.ndarray], np.ndarray]


def reversed_(values: np.ndarray) -> np.ndarray:
    return values[::-1]


def shifted(values: np.ndarray) -> np.ndarray:
    return np.roll(values, 1, axis=0)


def one_scale_off(values: np.ndarray) -> np.ndarray:
    values[0] = values[0] * 1.05
    return values


FAULTS = [
    ("fp32", "vision_encoder", "positions", shifted, "blocks.input", ""),
    ("fp32", "vision_encoder", "blocks.1.norm2.weight", reversed_, "blocks.1", "norm2"),
    ("fp32", "vision_encoder", "norm.weight", reversed_, "norm", ""),
    ("fp32", "connector", "ln_kv.weight", reversed_, "ln_kv", ""),
    ("fp32", "embed_tokens", "table.weight", reversed_, "table", ""),
    ("fp32", "decoder", "layers.1.mlp.down.weight", reversed_, "layers.1", "mlp.down"),
    ("fp32", "decoder", "layers.0.input_norm.weight", reversed_, "layers.0", "input_norm"),
    ("fp32", "decoder", "head.weight", reversed_, "head", ""),
    ("int4", "decoder", "layers.0.attention.qkv.weight_codes", reversed_, "layers.0", "attention.qkv"),
    ("int4", "decoder", "layers.1.mlp.down.weight_scales", one_scale_off, "layers.1", "mlp.down"),
]


@pytest.mark.parametrize(("precision", "stage", "tensor", "change", "block", "inside"), FAULTS)
def test_the_broken_block_is_named(
    copied: ExportedPackage, precision: str, stage: str, tensor: str, change: Change, block: str, inside: str
):
    folder = copied("minicpm-v", "cpu", precision)
    tamper(folder, stage, tensor, change)
    packages.verify(packages.read(folder))
    result = check(folder, GOLDENS / "minicpm-v", CheckOptions(steps=2))
    assert result.judgement.verdict is Verdict.FAIL
    divergence = result.judgement.run.divergence
    assert divergence is not None
    assert (divergence.stage, divergence.block) == (stage, block)
    assert inside in divergence.note
    assert result.first_failure is not None
    assert f"stage {stage}, block {block}" in result.first_failure


def test_a_small_fault_does_not_hide_behind_the_rounding_of_int8_inputs(copied: ExportedPackage):
    """One scale in 128, 5 % off, moves logits by less than the packaged kernels round anyway."""
    folder = copied("minicpm-v", "cpu", "int4")
    tamper(folder, "decoder", "layers.1.mlp.down.weight_scales", one_scale_off)
    judged = check(folder, GOLDENS / "minicpm-v", CheckOptions(steps=2)).judgement
    failed = {c.comparison.name for c in judged.comparisons if c.first_failure is not None}
    assert failed == {"implementation", "files"}
