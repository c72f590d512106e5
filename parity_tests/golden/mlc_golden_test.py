"""The golden passes, and every kind of difference makes it fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from parity_tests.golden.mlc_golden import check
from runtime_py.errors import UsageError

GOLDEN = Path(__file__).parents[1] / "goldens" / "mlc-llama"


def failures(folder: Path) -> set[str]:
    return {result.name for result in check(folder) if result.status != "pass"}


def one_quantisation(tmp_path: Path, name: str) -> Path:
    for part in ("checkpoint", name):
        shutil.copytree(GOLDEN / part, tmp_path / part)
    return tmp_path / name


def test_every_quantisation_equals_the_published_converter():
    results = check(GOLDEN)
    assert {result.name.split("/")[0] for result in results} == {"q4f16_0", "q4f16_1", "q4f32_1"}
    assert not [result for result in results if result.status != "pass"]
    assert any(result.name.endswith("params_shard_0.bin/md5") for result in results)


def test_one_wrong_byte_is_named(tmp_path):
    package = one_quantisation(tmp_path, "q4f16_1")
    data = bytearray((package / "params_shard_0.bin").read_bytes())
    data[5] ^= 0x10
    (package / "params_shard_0.bin").write_bytes(data)
    assert failures(tmp_path) == {"q4f16_1/lm_head.q_weight"}


def test_a_wrong_field_is_named(tmp_path):
    package = one_quantisation(tmp_path, "q4f32_1")
    path = package / "mlc-chat-config.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    value["active_vocab_size"] += 1
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
    assert failures(tmp_path) == {"q4f32_1/mlc-chat-config.json/active_vocab_size", "q4f32_1/mlc-chat-config.json"}


def test_other_weights_fail(tmp_path):
    one_quantisation(tmp_path, "q4f16_0")
    checkpoint = tmp_path / "checkpoint" / "model.safetensors"
    data = bytearray(checkpoint.read_bytes())
    data[-2:] = b"\x00\x46"
    checkpoint.write_bytes(data)
    assert any("/md5" in name for name in failures(tmp_path))


def test_a_folder_that_is_no_golden(tmp_path):
    with pytest.raises(UsageError, match="no MLC golden"):
        check(tmp_path)
