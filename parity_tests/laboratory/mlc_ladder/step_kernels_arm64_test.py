"""The kernels of a decode step on arm64, run under qemu: the numbers of their formulas, and arrays that begin anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tvm import tirx
from tvm.ir import IRModule
from tvm.target import Target

from export.processor.conftest import ARM64, drawn
from export.processor.flat_attention import flat_attention
from export.processor.flat_attention_test import EACH, THREE, Step
from export.processor.prompt_attention import prompt_attention
from export.processor.prompt_attention_test import Prompt
from export.processor.row_kernels import gate, skip_norm
from export.processor.row_kernels_test import EPS, rooted
from parity_tests.laboratory.arm64_program import Arm64Program, missing

OFFSET = 4
"""Bytes from where arrays are aligned, at which they begin."""

pytestmark = pytest.mark.skipif(missing(), reason="needs gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user-static")


def called(folder: Path, kernel: tirx.PrimFunc, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The arrays as they are after the call."""
    module = IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")})
    return Arm64Program(folder, module, Target(ARM64), OFFSET)(arrays)


@pytest.mark.parametrize(("heads", "cache"), [(EACH, "float16"), (THREE, "int8")], ids=["float16", "int8"])
def test_attention_is_that_of_the_formula(tmp_path: Path, heads, cache: str) -> None:
    step = Step.drawn(replace(heads, cache=cache))
    out = np.zeros((len(step.lengths), heads.queries * heads.size), np.float32)
    given = [step.qkv, step.cos, step.sin, step.lengths, *step.scales, *step.caches, out]
    *_, keys, values, made = called(tmp_path, flat_attention(step.heads), given)
    after = replace(step, caches=(keys, values))
    expected = after.formula()
    assert np.abs(made - expected).max() < 1e-6 * np.abs(expected).max()
    for before, cached in zip(step.caches, after.caches, strict=True):
        for row, length in enumerate(step.lengths):
            assert (cached[row, :, length] != before[row, :, length]).any()
            before[row, :, length] = cached[row, :, length]
        np.testing.assert_array_equal(cached, before)


@pytest.mark.parametrize(("heads", "cache"), [(EACH, "float16"), (THREE, "int8")], ids=["float16", "int8"])
def test_attention_of_a_prompt_is_that_of_the_formula(tmp_path: Path, heads, cache: str) -> None:
    prompt = Prompt.drawn(replace(heads, cache=cache), 33, 64)
    out = np.zeros((33, heads.queries * heads.size), np.float32)
    given = [prompt.qkv, prompt.cos, prompt.sin, np.array([64], np.int32), *prompt.scales, *prompt.caches, out]
    *_, keys, values, made = called(tmp_path, prompt_attention(prompt.heads), given)
    after = replace(prompt, caches=(keys.copy(), values.copy()))
    expected = after.formula()
    assert np.abs(made - expected).max() < 1e-6 * np.abs(expected).max()
    for before, cached in zip(prompt.caches, after.caches, strict=True):
        cached[0, :, prompt.written] = before[0, :, prompt.written]
        np.testing.assert_array_equal(cached, before)


def test_norm_and_gate_are_those_of_the_formulas(tmp_path: Path) -> None:
    x, skip, weight = drawn(1, 3, 100), drawn(2, 3, 100), drawn(3, 100)
    *_, normed, total = called(tmp_path, skip_norm(100, EPS, 0.25), [x, skip, weight, x * 0, x * 0])
    np.testing.assert_allclose(total, x + skip * np.float32(0.25), atol=3e-7)
    np.testing.assert_allclose(normed, rooted(total, weight), rtol=1e-6, atol=1e-7)
    halves = drawn(4, 3, 80) * 5
    _, gated = called(tmp_path, gate(40), [halves, np.zeros((3, 40), np.float32)])
    first = halves[:, :40].astype(np.float64)
    np.testing.assert_allclose(gated, first / (1 + np.exp(-first)) * halves[:, 40:], rtol=1e-6)
