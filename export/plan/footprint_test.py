"""Where a published checkpoint fits, where its memory goes, and that a refusal is told instead of sizes."""

from __future__ import annotations

from dataclasses import replace

from export.families.registry import families
from export.plan.footprint import as_line, as_row, footprint_of
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
