"""Predicted tokens a second: what a token reads, over the bandwidth that is told with its source."""

from __future__ import annotations

from dataclasses import replace

import pytest

from export.backends.base import BuildOptions
from export.backends.mlc.backend import MlcBackend
from export.backends.mlc.prediction import parameter_bytes
from export.backends.mlc.schemes import scheme_of
from export.families.registry import families
from export.modules.build import parameter_shapes
from export.pipeline import plan
from export.plan.footprint import as_line, as_row, footprint_of
from export.plan.report import to_json, to_text
from export.plan.speed import token_bytes
from export.request import ExportRequest
from export.source.tensor_source import EmptySource
from targets.devices import device_named, devices_of
from targets.fitting.speed import as_words, tokens_per_second
from targets.registry import target_named


def test_a_token_reads_the_decoder_once_and_half_of_the_cache() -> None:
    made = plan(ExportRequest(model="minicpm-v", target="android"), None)
    scheme = scheme_of("int4")
    decoder = sum(
        parameter_bytes(name, shape, made.parts["mlc"].assignments, scheme)
        for name, shape in parameter_shapes(made.spec).items()
        if name.startswith("decoder.")
    )
    assert made.token_bytes == decoder + made.device_bytes["kv_cache"] // 2


def test_a_tied_head_is_read_though_it_lies_with_the_embedding() -> None:
    record = families()["minicpm-v"]
    spec = record.spec(record.published_config("", "full"), EmptySource())
    tied = replace(spec, decoder=replace(spec.decoder, tied_head=True))
    target = target_named("android")
    options = BuildOptions(target, "int4", target.limits)
    read = []
    for one in (spec, tied):
        assignments = MlcBackend().assignments(one, options)
        read.append(token_bytes(MlcBackend().predict(one, options, assignments), assignments, options.limits))
    assert read[0] == read[1]


def test_a_token_reads_the_cache_of_its_own_sequence() -> None:
    one, four = (plan(ExportRequest(model="minicpm-v", target="android", batch=batch), None) for batch in (None, 4))
    assert four.device_bytes["kv_cache"] == 4 * one.device_bytes["kv_cache"]
    assert four.token_bytes == one.token_bytes


def test_speed_is_bandwidth_times_its_share_over_the_bytes_and_says_where_both_come_from() -> None:
    made = plan(ExportRequest(model="minicpm-v", target="android"), None)
    shown = to_json(made)
    rows = {row["name"]: row for row in shown["devices"]}
    phone = device_named("android-8gb", "android")
    assert shown["token_bytes"] == made.token_bytes
    assert rows["android-8gb"]["tokens_per_second"] == pytest.approx(67.2e9 * 0.44 / made.token_bytes, abs=0.05)
    assert phone.facts_source in rows["android-8gb"]["speed_source"]
    assert rows["android-12gb"]["tokens_per_second"] is None and rows["android-12gb"]["speed_source"] is None
    told = as_words(tokens_per_second(phone, made.token_bytes))
    assert told.startswith("up to 1") and told in to_text(made)


def test_the_listing_tells_the_speed_where_a_model_fits() -> None:
    record, target = families()["minicpm-v"], target_named("desktop-gpu")
    spec = record.spec(record.published_config("", "full"), EmptySource())
    footprint = footprint_of(target, "openbmb/MiniCPM-V", spec)
    speeds = as_row(footprint)["tokens_per_second"]
    assert speeds["rtx-4090"] == pytest.approx(speeds["rtx-3060"] * 1008 / 360, rel=0.01)
    assert f"rtx-4090 (up to {speeds['rtx-4090']:.0f} tokens/s)" in as_line(footprint, devices_of("desktop-gpu"))
    assert as_words(None) == "" and as_words(3.21) == "up to 3.2 tokens/s" and as_words(10.4) == "up to 10 tokens/s"
