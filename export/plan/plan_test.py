"""The plan: from config.json alone, honest about what fits, the same as text and as JSON."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from export.__main__ import main
from export.families.registry import families
from export.pipeline import plan
from export.plan import plan as module
from export.plan.plan import exceptional_groups, group_layers, make_plan
from export.plan.report import to_json, to_text
from export.quantisation.spec import Assignment, LayerShape, Storage
from export.request import ExportRequest
from parity_tests.check.verifier import PackageVerifier
from runtime_py.errors import DoesNotFitError, UnsupportedModelError
from targets.devices import Device
from targets.registry import target_named

GOLDEN = Path(__file__).parents[2] / "parity_tests" / "goldens" / "minicpm-v"


def test_layers_are_grouped_by_what_they_become() -> None:
    def layer(name: str, columns: int, storage: Storage, reason: str) -> tuple[str, Assignment]:
        return name, Assignment(LayerShape(name, "vision", 8, columns), storage, "", reason)

    rows = [layer(f"vision_encoder.blocks.{i}.mlp.fc2", 4304, Storage.FP16, "no multiple of 32") for i in range(26)]
    rows.append(layer("vision_encoder.blocks.26.mlp.fc2", 4304, Storage.INT4, ""))
    groups = group_layers("onnx", dict(rows))
    assert [(g.name, g.layers, g.storage, g.reason) for g in groups] == [
        ("vision_encoder.blocks.*.mlp.fc2", 26, "fp16", "no multiple of 32"),
        ("vision_encoder.blocks.*.mlp.fc2", 1, "int4", ""),
    ]


@pytest.mark.parametrize("target", ["cpu", "android", "ios"])
def test_the_published_model_is_planned_without_a_checkpoint(target: str) -> None:
    made = plan(ExportRequest(model="minicpm-v", target=target), PackageVerifier())
    shown = to_json(made)
    json.dumps(shown)
    parameters = {row["stage"]: row["parameters"] for row in shown["stages"]}
    assert 3.42e9 < sum(parameters.values()) < 3.44e9
    assert sum(row["layers"] for row in shown["layers"]) == 26 * 4 + 5 + 1 + 40 * 4 + 1
    assert 1.5e9 < sum(sum(row["file_bytes"].values()) for row in shown["stages"]) < 4e9
    assert set(shown["device_bytes"]) >= {"weights", "kv_cache", "activations"}
    text = to_text(made)
    first = 1 if target == "cpu" else 0  # the first block of an int8 tower is stored in another way
    for word in (
        f"mlp.fc2 ({26 - first} layers)",
        "4304 columns",
        "export peak memory",
        "licence",
        made.family.licence,
        "2304 x 5760",
    ):
        assert word in text
    assert "config.json alone" in shown["notes"][0]


def test_the_cache_grows_with_the_context_and_nothing_else_does() -> None:
    small, large = (
        plan(ExportRequest(model="minicpm-v", target="cpu", context=context, prefill_chunk=256), None).device_bytes
        for context in (1024, 2048)
    )
    assert large["kv_cache"] == 2 * small["kv_cache"]
    assert large["weights"] == small["weights"]


def test_a_device_too_small_is_refused_with_a_setting_that_does_fit() -> None:
    asked = ExportRequest(model="minicpm-v", target="android", device="android-6gb")
    with pytest.raises(DoesNotFitError) as caught:
        plan(asked, None).refuse_if_it_does_not_fit()
    nearest = plan(asked, None).devices[0].nearest
    assert nearest is not None
    assert nearest.flags() in caught.value.next_step
    assert nearest.precision == "int4"
    limits = nearest.limits
    again = plan(
        replace(asked, precision=nearest.precision, context=limits.context, prefill_chunk=limits.prefill_chunk), None
    )
    assert again.devices[0].fits
    replace(again, available_memory=1 << 50, free_disk=1 << 50).refuse_if_it_does_not_fit()
    assert sum(again.device_bytes.values()) == nearest.needed
    one_step_more = replace(asked, precision="int4", context=nearest.limits.context + 64)
    assert not plan(one_step_more, None).devices[0].fits


def test_this_machines_memory_and_disk_are_checked() -> None:
    made = plan(ExportRequest(model="minicpm-v", target="cpu", skip_verify=True), PackageVerifier())
    replace(made, available_memory=1 << 50, free_disk=1 << 50).refuse_if_it_does_not_fit()
    peak, step = made.export_peak
    with pytest.raises(DoesNotFitError, match=step):
        replace(made, available_memory=peak - 1, free_disk=1 << 50).refuse_if_it_does_not_fit()
    assert made.disk_needed > made.file_bytes, "room for what lies beside the files"
    replace(made, available_memory=peak, free_disk=made.disk_needed).refuse_if_it_does_not_fit()
    with pytest.raises(DoesNotFitError, match="on the disk"):
        replace(made, available_memory=1 << 50, free_disk=made.disk_needed - 1).refuse_if_it_does_not_fit()


def test_a_check_too_large_for_this_machine_names_the_waiver() -> None:
    made = plan(ExportRequest(model="minicpm-v", target="cpu"), PackageVerifier())
    assert made.export_peak[1] == "check against the reference"
    with pytest.raises(DoesNotFitError) as caught:
        replace(made, available_memory=made.export_peak[0] - 1).refuse_if_it_does_not_fit()
    assert "--skip-verify" in caught.value.next_step


def test_dry_run_needs_config_json_alone_and_checks_weights_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(GOLDEN / "config.json", tmp_path / "config.json")
    arguments = ["--model", str(tmp_path), "--target", "cpu", "--dry-run", "--json"]
    assert main(arguments) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["family"] == "minicpm-v"
    assert shown["limits"]["context"] == 128, "the model's own positions bound the context"
    (tmp_path / "model.safetensors").write_bytes((GOLDEN / "model.safetensors").read_bytes()[:1000])
    assert main(arguments) == 2
    assert "model.safetensors" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_a_refused_plan_is_printed_before_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        ["--model", "minicpm-v", "--target", "android", "--dry-run", "--device", "android-6gb", "--precision", "fp16"]
    )
    printed = capsys.readouterr()
    assert code == 4
    assert "what the layers become" in printed.out
    assert "--precision int4" in printed.err


def test_what_a_target_cannot_hold_has_a_reason() -> None:
    family = families()["minicpm-v"]
    from export.source.tensor_source import EmptySource

    spec = family.spec(family.published_config("", "full"), EmptySource())
    groups = exceptional_groups(spec, target_named("android"), "int4")
    assert any("fc2" in group.name and "4304" in group.reason for group in groups)
    assert all(group.reason and group.storage != "int4" for group in groups)
    assert exceptional_groups(spec, target_named("android"), "fp16") == []


def test_the_nearest_setting_is_sought_for_an_asked_device_that_is_too_small() -> None:
    every = plan(ExportRequest("minicpm-v", "android"), None).devices
    assert {device.fits for device in every} == {True, False} and not any(device.nearest for device in every)
    (large,) = plan(ExportRequest("minicpm-v", "android", device="android-12gb"), None).devices
    assert large.fits and large.nearest is None


@pytest.mark.parametrize(("missing", "fits"), [(0, True), (1, False)])
def test_a_device_may_be_filled_to_the_last_byte(missing: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = sum(plan(ExportRequest("minicpm-v", "android"), None).device_bytes.values())
    device = Device("full", "Full", ("android",), 2 * needed, needed - missing, "test")
    monkeypatch.setattr(module, "devices_of", lambda target: [device])
    (row,) = plan(ExportRequest("minicpm-v", "android"), None).devices
    assert row.fits is fits


def test_a_picture_goes_whole_through_the_backend_that_takes_the_most_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = dict(zip(target_named("desktop-gpu").backend_names, (7, 3), strict=True))
    monkeypatch.setattr(module, "_exporter", lambda name: SimpleNamespace(picture_rows=lambda spec: rows[name]))
    spec = object()
    assert module.picture_rows(target_named("desktop-gpu"), spec) == 7  # type: ignore[arg-type]


def test_a_model_that_a_backend_cannot_hold_has_no_plan(tmp_path: Path) -> None:
    made = plan(ExportRequest("minicpm-v", "desktop-gpu"), None)
    decoder = replace(made.spec.decoder, head_dim=12, rope=replace(made.spec.decoder.rope, dim=12))
    with pytest.raises(UnsupportedModelError, match="attention heads of 12 channels"):
        make_plan(made.request, made.family, replace(made.spec, decoder=decoder), "odd", tmp_path, None)
