"""Damaged MLC packages: the report must name the stage and the block whose weights were damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from parity_tests.check.package_check import CheckOptions, check
from parity_tests.conftest import GOLDENS, ExportedPackage
from parity_tests.judging.judge import Verdict
from runtime_py import package as packages

Change = Callable[[np.ndarray], np.ndarray]


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


def tamper(package: Path, name: str, change: Change) -> None:
    """Replace one stored tensor by ``change`` of it and put the new hashes into the manifest, so that it verifies."""
    path = package / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    weights = package / manifest["backends"]["mlc"]["weights"]
    index = json.loads((weights / "tensor-cache.json").read_text(encoding="utf-8"))
    shard, record = next((s, r) for s in index["records"] for r in s["records"] if r["name"] == name)
    file = weights / shard["dataPath"]
    content = bytearray(file.read_bytes())
    start, stop = record["byteOffset"], record["byteOffset"] + record["nbytes"]
    kind = record["dtype"] if record["nbytes"] == 4 * int(np.prod(record["shape"])) else "uint16"
    before = np.frombuffer(bytes(content[start:stop]), kind).reshape(record["shape"])
    values = (before.astype(np.uint32) << 16).view(np.float32) if kind == "uint16" else before
    after = np.ascontiguousarray(change(values.copy()))
    after = (after.view(np.uint32) >> 16).astype(np.uint16) if kind == "uint16" else after
    assert not np.array_equal(before, after), "the damage must change something"
    content[start:stop] = after.tobytes()
    file.write_bytes(content)
    for row in manifest["files"]:
        if row["path"] == file.relative_to(package).as_posix():
            row["sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(manifest, indent=2), encoding="utf-8")


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
