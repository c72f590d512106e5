"""ExportRequest: what it refuses, and how it fills in what was not given."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.request import ExportRequest
from runtime_py.errors import UsageError


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"model": " "}, "--model"),
        ({"target": "toaster"}, "toaster: there is no such target"),
        ({"precision": "int3"}, "--precision int3"),
        ({"target": "desktop-gpu", "precision": "q4f32_1"}, "--precision q4f32_1"),
        ({"context": 0}, "--context 0"),
        ({"prefill_chunk": -1}, "--prefill-chunk -1"),
        ({"batch": 2}, "--batch with --target cpu"),
        ({"batch": 0, "target": "android"}, "--batch 0"),
        ({"batch": 17, "target": "ios"}, "--batch 17"),
        ({"batch": 0, "target": "desktop-gpu"}, "--batch 0"),
        ({"batch": 2, "target": "server-cpu"}, "--batch with --target server-cpu"),
        ({"block_size": 33}, "--block-size 33"),
        ({"vision_precision": "int2"}, "--vision-precision int2"),
        ({"head_precision": "fp8", "precision": "int4"}, "--head-precision fp8"),
        ({"embed_precision": "int2", "precision": "int4"}, "--embed-precision int2"),
        ({"asymmetric": True, "precision": "fp16"}, "--asymmetric with --target cpu"),
        ({"asymmetric": True, "target": "android"}, "--asymmetric with --target android"),
        ({"head_precision": "int8", "target": "ios"}, "--head-precision with --target ios"),
        ({"device": "android-8gb"}, "--device android-8gb"),
        ({"resume": True, "force": True}, "--resume and --force"),
    ],
)
def test_refuses_on_construction(flags: dict, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        ExportRequest(**{"model": "minicpm-v", "target": "cpu", **flags})
    assert named in caught.value.what
    assert caught.value.expected
    assert caught.value.next_step


def test_limits_default_to_the_target_within_the_models_positions() -> None:
    request = ExportRequest(model="m", target="cpu")
    assert request.limits(100_000).context == 4096
    assert request.limits(100_000).prefill_chunk == 512
    assert request.limits(256).context == 256
    assert request.limits(256).prefill_chunk == 256


def test_a_batch_is_one_unless_it_is_asked_for_or_a_gpu_serves_many() -> None:
    assert ExportRequest(model="m", target="desktop-gpu").limits(4096).batch == 1
    assert ExportRequest(model="m", target="server-gpu").limits(4096).batch == 8
    assert ExportRequest(model="m", target="server-gpu", batch=2).limits(4096).batch == 2
    assert ExportRequest(model="m", target="android").limits(4096).batch == 1
    assert ExportRequest(model="m", target="ios", batch=4).limits(4096).batch == 4


def test_limits_refuse_more_than_the_model_has() -> None:
    with pytest.raises(UsageError, match="512 positions"):
        ExportRequest(model="m", target="cpu", context=513).limits(512)
    with pytest.raises(UsageError, match="exceeds the context of 64"):
        ExportRequest(model="m", target="cpu", context=64, prefill_chunk=65).limits(512)


def test_mlc_names_mean_the_same_precision() -> None:
    assert ExportRequest(model="m", target="android", precision="q4f16_1").precision_name() == "int4"
    assert ExportRequest(model="m", target="android").precision_name() == "int4"
    assert ExportRequest(model="m", target="ios", precision="q4f32_1").precision_name() == "q4f32_1"


def test_default_output_is_named_after_model_target_and_precision(tmp_path: Path) -> None:
    assert ExportRequest(model="openbmb/MiniCPM-V", target="android").output_folder() == Path("MiniCPM-V-android-int4")
    folder = tmp_path / "my checkpoint"
    folder.mkdir()
    assert ExportRequest(model=str(folder), target="cpu").output_folder() == Path("my-checkpoint-cpu-int4")


def test_waivers_are_named() -> None:
    assert ExportRequest(model="m", target="cpu").waivers() == []
    names = [w["name"] for w in ExportRequest(model="m", target="cpu", skip_verify=True, without_tokenizer=True).waivers()]
    assert names == ["skip-verify", "without-tokenizer"]
