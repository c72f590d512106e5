"""Profiles cover what the processors and the session really send."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from export.backends.tensorrt.profiles import Profile, stage_profiles
from export.families.minicpm_v.family import FAMILY
from export.families.registry import read_config
from export.graphs.trace import BorderTypes, border_contract
from export.source.tensor_source import EmptySource
from export.specs import ModelSpec
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, STAGES, VISION
from runtime_py.errors import UnsupportedModelError
from runtime_py.preprocess.minicpm_v import Processor
from targets.base import Limits

GOLDENS = Path(__file__).parents[3] / "parity_tests" / "goldens"
LIMITS = Limits(context=4096, prefill_chunk=1024)


def full_spec(variant: str) -> ModelSpec:
    return FAMILY.spec(FAMILY.published_config(variant, "full"), EmptySource())


def profiles(spec: ModelSpec, stage: str, limits: Limits = LIMITS) -> list[Profile]:
    return stage_profiles(spec, stage, border_contract(spec, stage, BorderTypes()), limits)


def covered(candidates: list[Profile], shapes: dict[str, tuple[int, ...]]) -> list[str]:
    def within(profile: Profile) -> bool:
        triples = [(profile.shapes[name], shape) for name, shape in shapes.items()]
        return all(
            all(low <= size <= high for low, size, high in zip(least, shape, greatest, strict=True))
            for (least, _, greatest), shape in triples
        )

    return [profile.name for profile in candidates if within(profile)]


@pytest.mark.parametrize("size", [(448, 448), (600, 400), (1200, 300), (300, 1200), (3000, 2000), (2400, 200), (97, 1500)])
def test_every_slice_of_a_picture_has_a_profile(size: tuple[int, int]) -> None:
    spec = full_spec("2.0")
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    vision, connector = profiles(spec, VISION), profiles(spec, CONNECTOR)
    for piece in Processor(spec.runtime, None).images([picture]):
        shapes = {name: array.shape for name, array in piece.vision.items()}
        assert covered(vision, shapes), shapes
        tokens = piece.connector["key_positions"].shape[0]
        sizes = {"vision_features": (1, tokens, spec.vision.width), "key_positions": (tokens, spec.connector.width)}
        assert covered(connector, sizes), tokens


def test_no_profile_holds_both_a_wide_and_a_tall_picture() -> None:
    for profile in profiles(full_spec("2.0"), VISION):
        height, width = profile.shapes["pixel_values"][2][2:]
        assert (height // 14) * (width // 14) <= 4 * 32 * 32


def test_the_decoder_has_a_profile_for_one_token_and_one_for_a_chunk() -> None:
    spec = full_spec("1.0")
    listed = profiles(spec, DECODER)
    cache = (1, spec.decoder.kv_heads, LIMITS.context, spec.decoder.head_dim)

    def call(tokens: int, total: int, outputs: int) -> list[str]:
        return covered(
            listed,
            {
                "inputs_embeds": (1, tokens, spec.decoder.hidden),
                "attention_mask": (1, total),
                "position_ids": (1, tokens),
                "logit_positions": (outputs,),
                "past_key_values.0.key": cache,
            },
        )

    assert call(1, 1, 1)[0] == "decode"
    assert call(1, LIMITS.context, 1)[0] == "decode"
    assert call(1024, 4096, 1024) == ["prefill"]
    assert call(7, 7, 1) == ["prefill"]
    assert call(1025, 1025, 1) == []


def test_a_float_decoder_has_one_profile_for_everything() -> None:
    spec = full_spec("1.0")
    contract = border_contract(spec, DECODER, BorderTypes())
    (only,) = stage_profiles(spec, DECODER, contract, LIMITS, packed=False)
    least, _, greatest = only.shapes["inputs_embeds"]
    assert (least[1], greatest[1]) == (1, 1024)


@pytest.mark.parametrize(("packed", "taken"), [(True, ["rows"]), (False, ["any"])])
def test_a_token_of_each_of_several_sequences_has_a_profile(packed: bool, taken: list[str]) -> None:
    spec = full_spec("1.0")
    contract = border_contract(spec, DECODER, BorderTypes())
    several = stage_profiles(spec, DECODER, contract, dataclasses.replace(LIMITS, batch=8), packed)

    def call(sequences: int, tokens: int) -> list[str]:
        cache = (sequences, spec.decoder.kv_heads, LIMITS.context, spec.decoder.head_dim)
        sizes = {"inputs_embeds": (sequences, tokens, spec.decoder.hidden), "past_key_values.0.key": cache}
        return covered(several, {**sizes, "attention_mask": (sequences, 4096), "position_ids": (sequences, tokens)})

    assert call(2, 1) == call(8, 1) == taken
    assert call(9, 1) == []
    assert call(1, 1)[0] == ("decode" if packed else "any")
    assert call(1, 1024) == (["prefill"] if packed else ["any"])
    for stage in (VISION, CONNECTOR, EMBED):
        assert profiles(spec, stage, dataclasses.replace(LIMITS, batch=8)) == profiles(spec, stage)


def test_every_input_of_every_stage_is_in_every_profile() -> None:
    for variant in ("1.0", "2.0"):
        spec = full_spec(variant)
        for stage in STAGES:
            names = set(border_contract(spec, stage, BorderTypes()).input_names())
            assert all(set(profile.shapes) == names for profile in profiles(spec, stage))


def test_an_unknown_axis_is_refused_by_name() -> None:
    source = FAMILY.open_source(GOLDENS / "minicpm-v")
    spec = FAMILY.spec(read_config(GOLDENS / "minicpm-v"), source)
    contract = border_contract(spec, DECODER, BorderTypes())
    odd = dataclasses.replace(contract.inputs[0], shape=("batch", "experts", 128))
    with pytest.raises(UnsupportedModelError, match="experts"):
        stage_profiles(spec, DECODER, dataclasses.replace(contract, inputs=(odd,)), LIMITS)
