"""Every published checkpoint from its config alone: tensor and parameter counts as counted on the published files."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from export.families.base import Family
from export.families.published import read_published, variants
from export.families.registry import families
from export.modules.build import parameter_shapes
from export.source.tensor_source import EmptySource
from runtime_py.errors import UsageError

PUBLISHED = {
    "openbmb/MiniCPM-V": (694, 3_434_965_792),
    "openbmb/MiniCPM-V-2": (694, 3_434_965_792),
    "openbmb/OmniLMM-12B": (1130, 11_614_343_936),
    "feipengma/WeMM-Chat-CN": (987, 8_795_140_336),
    "feipengma/WeMM-Chat-2k-CN": (987, 9_472_677_616),
    "MetabrainAGI/Awaker2.5-VL": (2186, 11_081_591_520),
    "Qwen/Qwen2-VL-7B-Instruct": (730, 8_291_375_616),
    "THUDM/cogvlm2-llama3-chat-19B": (1221, 19_503_107_328),
    "THUDM/cogvlm2-llama3-chinese-chat-19B": (1221, 19_503_107_328),
    "THUDM/cogvlm2-llama3-chat-19B-int4": (1221, 19_503_107_328),
    "THUDM/cogvlm2-llama3-chinese-chat-19B-int4": (1221, 19_503_107_328),
    "openbmb/MiniCPM-Llama3-V-2_5-int4": (741, 8_537_092_336),
    "THUDM/cogvlm2-video-llama3-chat": (1029, 12_507_532_544),
    "THUDM/cogvlm2-video-llama3-base": (1029, 12_507_532_544),
    "THUDM/cogvlm2-llama3-caption": (1029, 12_507_532_544),
}
"""Tensors and parameters the rules read. XVERSE-V is apart: its CLIP file holds more than is used."""


@pytest.mark.parametrize("family", families().values(), ids=lambda family: family.name)
@pytest.mark.parametrize("size", ["full", "tiny"])
def test_rules_and_modules_agree_for_every_published_checkpoint(family, size):
    for hub_id in variants(family.published_table()):
        spec = family.spec(family.published_config(hub_id, size), EmptySource())
        rules = family.weight_map(spec, EmptySource()).rules
        assert {name: rule.shape for name, rule in rules.items()} == parameter_shapes(spec)


def test_tensor_and_parameter_counts_are_the_published_ones():
    counted = {}
    for family in families().values():
        for hub_id in variants(family.published_table()):
            spec = family.spec(family.published_config(hub_id, "full"), EmptySource())
            rules = family.weight_map(spec, EmptySource()).rules.values()
            read = {n: s for rule in rules for n, s in zip(rule.sources, rule.source_shapes, strict=True)}
            counted[hub_id] = (len(read), sum(math.prod(shape) for shape in read.values()))
    assert {hub_id: counted[hub_id] for hub_id in PUBLISHED} == PUBLISHED


def test_xverse_language_model_adapters_and_projector_add_up():
    family = families()["xverse-v"]
    spec = family.spec(family.published_config("", "full"), EmptySource())
    rules = family.weight_map(spec, EmptySource()).rules.values()
    read = {n: s for rule in rules for n, s in zip(rule.sources, rule.source_shapes, strict=True)}
    adapters = sum(math.prod(s) for n, s in read.items() if n.startswith("adapters/") and "ln_vision" not in n)
    assert adapters == 500_695_040 + 31_467_520


def test_an_unknown_variant_is_refused():
    with pytest.raises(UsageError, match=r"9\.9"):
        read_published(families()["minicpm-v"].published_table(), "9.9", "full")


def plain(value: Any) -> Any:
    """A spec as JSON has it, every record with its type."""
    if is_dataclass(value):
        return {"__type__": type(value).__name__, **{part.name: plain(getattr(value, part.name)) for part in fields(value)}}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


RECORD = json.loads(Path(__file__).with_name("published_specs.json").read_text())
ON_RECORD = [f for f in families().values() if any(f"{hub_id}/full" in RECORD for hub_id in variants(f.published_table()))]


def test_every_record_is_of_a_family() -> None:
    checkpoints = [hub_id for family in ON_RECORD for hub_id in variants(family.published_table())]
    assert sorted(RECORD) == sorted(f"{hub_id}/{size}" for hub_id in checkpoints for size in ("full", "tiny"))


@pytest.mark.parametrize("family", ON_RECORD, ids=lambda family: family.name)
@pytest.mark.parametrize("size", ["full", "tiny"])
def test_published_configs_give_the_specs_on_record(family: Family, size: str) -> None:
    """published_specs.json was written by the families when each still read its own config; newer families are not in it.

    Since then WeMM's tiny vocabulary of 310 has got the mark that ends a turn, which stood at 92542 beyond it, and greedy
    families draw from transformers' 50 tokens, not from one, when a temperature is asked for; and Qwen2-VL's tiny decoder
    has 4,096 positions for 512, which do not hold a picture of its default size.
    """
    for hub_id in variants(family.published_table()):
        spec = family.spec(family.published_config(hub_id, size), EmptySource())
        for part, expected in RECORD[f"{hub_id}/{size}"].items():
            assert plain(getattr(spec, part)) == expected, (hub_id, part)
