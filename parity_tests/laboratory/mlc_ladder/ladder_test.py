"""The rungs that need nothing but apache-tvm, and the reporting of those that cannot run."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from export.backends.mlc.compile_process import compile_apart
from export.backends.mlc.objects import check_library, members
from parity_tests.laboratory.mlc_ladder import __main__ as command
from parity_tests.laboratory.mlc_ladder import environment
from parity_tests.laboratory.mlc_ladder.case import LIMITS, make_case
from parity_tests.laboratory.mlc_ladder.pocl import Kernel, read_device_module
from parity_tests.laboratory.mlc_ladder.results import CannotRun, RungResult, Status, compare
from parity_tests.laboratory.mlc_ladder.rungs import GOLDENS, Ladder, text_start
from runtime_py.backends.mlc import MlcBackend
from runtime_py.errors import ExitCode, PackageError
from runtime_py.package.files import rows_of

OBJDUMP = "aarch64-linux-gnu-objdump"


@pytest.fixture(scope="module")
def ladder(tmp_path_factory) -> Ladder:
    return Ladder(GOLDENS / "minicpm-v-2", None, tmp_path_factory.mktemp("ladder"))


def test_host_library_says_what_pytorch_says(ladder):
    result = ladder.host()
    assert result.status is Status.PASS, result.detail
    assert {"vision_2", "connector", "image_embed", "image_embed_slice", "prefill_logits", "softmax"} <= set(result.figures)


LOOKED_UP = (
    *("embed", "image_embed", "prefill", "decode", "batch_prefill", "batch_decode", "batch_verify"),
    *("create_tir_paged_kv_cache", "alloc_embedding_tensor", "softmax_with_temperature"),
    *("apply_logit_bias_inplace", "apply_penalty_inplace", "apply_bitmask_inplace", "_metadata"),
)
"""mlc-ai/mlc-llm, cpp/serve/function_table.cc, without speculative decoding and sampling on the GPU."""


def test_every_function_the_engine_looks_up(ladder):
    ladder.case.library("host")
    manifest = json.loads((ladder.case.folder / "manifest.json").read_text())
    manifest["backends"]["mlc"]["host_library"] = "host.so"
    manifest["files"] = rows_of(ladder.case.folder)
    backend = MlcBackend(ladder.case.folder, manifest)
    for name in LOOKED_UP:
        assert backend._machine.get_function(name, query_imports=True) is not None, name
    assert backend._machine["alloc_embedding_tensor"]().shape == (LIMITS.prefill_chunk, 128)
    upstream = json.loads((GOLDENS / "mlc-llama" / "lib-metadata-q4f16_1.json").read_text())
    assert set(upstream) == set(backend.metadata)
    assert set(upstream["kv_cache"]) == set(backend.metadata["kv_cache"])
    assert set(upstream["params"][0]) == set(backend.metadata["params"][0])
    used = backend.metadata["memory_usage"]
    assert set(used) >= {name for name in LOOKED_UP if not name.startswith(("apply_", "_", "create_"))}
    assert used["alloc_embedding_tensor"] == LIMITS.prefill_chunk * 128 * 4


@pytest.mark.slow
@pytest.mark.parametrize("place", ["android", "ios"])
def test_device_tars_name_every_function(ladder, place):
    text = b"".join(members(ladder.tar(place)).values())
    assert [name for name in LOOKED_UP if name.encode() not in text] == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(OBJDUMP) is None, reason="needs binutils-aarch64-linux-gnu")
@pytest.mark.parametrize("mode", ["aarch64", "arm64_host"])
def test_arm64_libraries_multiply_bytes(ladder, mode, tmp_path):
    text = ""
    for name, data in members(ladder.case.library(mode)).items():
        (tmp_path / name).write_bytes(data)
        text += subprocess.run([OBJDUMP, "-d", tmp_path / name], check=True, capture_output=True, text=True).stdout
    # of the three bytes of a number the highest is signed
    assert text.count("\tudot") == 2 * text.count("\tsdot") > 50


@pytest.mark.slow
def test_structure_of_both_tars(ladder):
    result = ladder.structure()
    assert result.status is Status.PASS, result.detail
    assert "android" in result.detail
    assert "ios" in result.detail


@pytest.mark.slow
def test_the_same_request_gives_the_same_bytes(ladder, tmp_path):
    compile_apart(ladder.shipped().parts.request(), "android", tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == ladder.tar("android").read_bytes()


@pytest.mark.slow
def test_a_library_under_another_name_is_refused(ladder):
    assert len(members(ladder.tar("android"))) == 2
    with pytest.raises(PackageError, match="other_name___tvm_ffi__library_bin"):
        check_library(ladder.tar("android"), "other_name")


def test_what_is_not_installed_is_not_run(ladder, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    result = command.climb(ladder, "clang")
    assert result.status is Status.NOT_RUN
    assert "clang is not installed" in result.detail
    assert "not run" in capsys.readouterr().out


def test_no_sysroot_is_not_run(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEPROOF_CACHE", str(tmp_path))
    with pytest.raises(CannotRun, match="no arm64 sysroot"):
        environment.need_sysroot()


def test_exit_codes():
    passed, failed, absent = (RungResult("a", status, "") for status in (Status.PASS, Status.FAIL, Status.NOT_RUN))
    assert command.exit_code([passed]) == ExitCode.OK
    assert command.exit_code([passed, absent]) == ExitCode.ENVIRONMENT
    assert command.exit_code([passed, absent, failed]) == ExitCode.PARITY_FAILED


def test_comparison_sees_a_wrong_value_a_missing_array_and_nan():
    expected = {"x": np.ones((2, 3), np.float32), "ids": np.array([1, 2])}
    assert compare("r", expected, expected).status is Status.PASS
    for arrays in (
        {**expected, "x": expected["x"] * np.float32(1.001)},
        {**expected, "x": expected["x"] * np.float32("nan")},
        {**expected, "ids": np.array([1, 3])},
        {"ids": expected["ids"]},
    ):
        assert compare("r", expected, arrays).status is Status.FAIL


def test_device_module_fields():
    def text(value: str) -> bytes:
        return len(value).to_bytes(8, "little") + value.encode()

    one = (1).to_bytes(8, "little")
    arguments = (2).to_bytes(8, "little") + bytes([3, 64, 1, 0]) + bytes([0, 32, 1, 0])
    code = "// Function: add\n__kernel void add() {}"
    blob = text("cl") + one + text("add") + text("add") + arguments + one + text("blockIdx.x") + b"\0" * 8 + text(code)
    source, kernels = read_device_module(blob)
    assert source == code
    assert kernels == [Kernel("add", ((3, 64), (0, 32)), ("blockIdx.x",))]
    padded = b"\xff" * 50 + blob + b"\0" * 40
    assert padded[text_start(padded, padded.index(b"// Function")) :].startswith(b"// Function: add")


def test_case_manifest_is_complete(tmp_path):
    case = make_case(GOLDENS / "minicpm-v", tmp_path)
    block = json.loads((tmp_path / "manifest.json").read_text())["backends"]["mlc"]
    assert Path(block["weights"]).name == case.parts.model_id
    assert (tmp_path / block["weights"] / "tensor-cache.json").is_file()
    assert np.load(tmp_path / "inputs.npz")["pieces"] == 1
