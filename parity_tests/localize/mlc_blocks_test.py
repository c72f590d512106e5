"""Damaged MLC packages: the report must name the stage and the block whose weights were damaged."""

from __future__ import annotations

import numpy as np
import pytest

from parity_tests.check.package_check import CheckOptions, check
from parity_tests.conftest import GOLDENS, ExportedPackage
from parity_tests.judging.judge import Verdict
from parity_tests.laboratory.mlc_tamper import Change, tamper
from runtime_py import package as packages


def reversed_(values: np.ndarray) -> np.ndarray:
    return values[::-1]


def one_scale_off(values: np.ndarray) -> np.ndarray:
    values[0, 0] *= 1.5
    return values


FAULTS = [
    ("minicpm-v", "fp32", "vision_encoder", "blocks.1.norm2.weight", reversed_, "blocks.1"),
    ("minicpm-v", "fp32", "connector", "ln_kv.weight", reversed_, "ln_kv"),
    ("minicpm-v", "fp32", "embed_tokens", "table.weight", reversed_, "table"),
    ("minicpm-v", "fp32", "decoder", "layers.1.mlp.down.weight", reversed_, "layers.1"),
    ("minicpm-v", "fp32", "decoder", "head.weight", reversed_, "head"),
    ("minicpm-v", "q4f32_1", "decoder", "layers.0.attention.qkv.q_scale", one_scale_off, "layers.0"),
]
"""Case, precision, stage, parameter within it, damage, block."""


@pytest.mark.slow
@pytest.mark.parametrize(("case", "precision", "stage", "tensor", "change", "block"), FAULTS)
def test_the_broken_block_is_named(
    copied: ExportedPackage, case: str, precision: str, stage: str, tensor: str, change: Change, block: str
):
    folder = copied(case, "android", precision)
    tamper(folder, f"{stage}.{tensor}", change)
    packages.verify(packages.read(folder))
    result = check(folder, GOLDENS / case, CheckOptions(steps=1, trust=True))
    assert result.judgement.verdict is Verdict.FAIL
    divergence = result.judgement.run.divergence
    assert divergence is not None
    assert (divergence.stage, divergence.block) == (stage, block)
    assert result.first_failure is not None
    assert f"stage {stage}, block {block}" in result.first_failure
