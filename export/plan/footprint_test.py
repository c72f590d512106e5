"""Where a published checkpoint fits, where its memory goes, and that a refusal is told instead of sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from export.families.registry import families
from export.plan import footprint as module
from export.plan.footprint import Footprint, as_line, as_row, footprint_of, footprints
from export.source.tensor_source import EmptySource
from export.specs import ModelSpec
from targets.devices import devices_of
from targets.registry import target_named


def full_spec(family: str) -> ModelSpec:
    record = families()[family]
    return record.spec(record.published_config("", "full"), EmptySource())


def test_a_model_too_large_for_every_phone_says_where_its_memory_goes() -> None:
    android = target_named("android")
    footprint = footprint_of(android, "THUDM/cogvlm2-llama3-chat-19B", full_spec("cogvlm2"))
    assert not any(footprint.fits.values())
    assert footprint.needed == sum(footprint.parts.values()) > 15e9
    line = as_line(footprint, devices_of("android"))
    assert "fits none of these devices" in line
    assert f"weights {footprint.parts['weights'] / 2**30:.2f} GiB" in line
    assert "of the weights the vision_encoder" in line
    assert as_row(footprint)["fits"] == dict.fromkeys(footprint.fits, False)


def test_devices_that_are_too_small_are_told_apart_from_those_that_are_not() -> None:
    footprint = footprint_of(target_named("android"), "openbmb/MiniCPM-V", full_spec("minicpm-v"))
    fitting, rest = as_line(footprint, devices_of("android")).split("; not ")
    assert any(footprint.fits.values()) and not all(footprint.fits.values())
    for name, fits in footprint.fits.items():
        assert (name in fitting, name in rest) == (fits, not fits)


def test_a_stage_that_a_backend_cannot_hold_is_named() -> None:
    spec = full_spec("cogvlm2")
    odd = replace(spec, decoder=replace(spec.decoder, head_dim=12, rope=replace(spec.decoder.rope, dim=12)))
    footprint = footprint_of(target_named("desktop-gpu"), "odd", odd)
    assert "decoder: attention heads of 12 channels" in footprint.refused
    assert as_line(footprint, []).startswith("not built: odd at int4: cogvlm2 for desktop-gpu")
    assert as_row(footprint)["refused"] == footprint.refused


def test_a_reason_names_the_two_largest_parts_and_the_largest_stage() -> None:
    gibibyte = 1 << 30
    parts = {"logits": gibibyte, "kv_cache": 2 * gibibyte, "weights": 4 * gibibyte}
    told = Footprint("f", "c", "int4", "", parts, {"embed": gibibyte, "decoder": 3 * gibibyte}, {}).reason()
    assert told == "weights 4.00 GiB, kv_cache 2.00 GiB; of the weights the decoder has 3.00 GiB"


def test_a_row_for_programs_has_every_size() -> None:
    footprint = footprint_of(target_named("cpu"), "openbmb/MiniCPM-V", full_spec("minicpm-v"))
    row = as_row(footprint)
    speeds = row.pop("tokens_per_second")
    assert row == {
        "family": "minicpm-v",
        "checkpoint": "openbmb/MiniCPM-V",
        "precision": "int4",
        "refused": None,
        "device_bytes": footprint.parts,
        "stage_bytes": footprint.stages,
        "fits": footprint.fits,
        "stock_engine": None,
    }
    assert set(speeds) == {device.name for device in devices_of("cpu")} and min(footprint.stages.values()) > 0


def test_checkpoints_of_one_shape_are_listed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "footprint_of", lambda target, checkpoint, spec: (spec.family, checkpoint))
    rows: list[object] = list(footprints(target_named("cpu")))
    assert [row for row in rows if row[0] in ("cogvlm2", "minicpm-v")] == [  # type: ignore[index]
        ("cogvlm2", "THUDM/cogvlm2-llama3-chat-19B"),
        ("cogvlm2", "THUDM/cogvlm2-video-llama3-chat"),
        ("minicpm-v", "openbmb/MiniCPM-V"),
        ("minicpm-v", "openbmb/MiniCPM-V-2"),
    ]
