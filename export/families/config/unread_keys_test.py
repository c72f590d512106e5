"""Every key of a published config.json is read: another value changes the model or is refused, or the key says nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from export.families.base import Family
from export.families.registry import families
from export.source.tensor_source import EmptySource
from export.specs import ModelSpec
from runtime_py.errors import CheckpointError, UnsupportedModelError

STRANGE = (97, "zz", [7], -3.5, True)

EVERYWHERE = {"architectures", "model_type", "torch_dtype", "initializer_range", "use_cache", "pretraining_tp"}
EVERYWHERE |= {"attention_dropout", "dropout_prob", "transformers_version", "auto_map", "AutoConfig", "AutoModel"}
EVERYWHERE |= {"AutoModelForCausalLM"}
"""Names, training and storage."""

ALL = pytest.mark.parametrize("family", families().values(), ids=lambda family: family.name)


def places(config: dict[str, Any], way: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The way to every key, those inside objects too."""
    for key, value in config.items():
        yield (*way, key)
        if isinstance(value, dict):
            yield from places(value, (*way, key))


def spec_with(family: Family, way: tuple[str, ...], value: Any = None, dropped: bool = False) -> ModelSpec | None:
    """The model of the tiny published config with one key changed or dropped; None where that is refused."""
    config = copy.deepcopy(family.published_config("", "tiny"))
    inner = config
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = value
    if dropped:
        del inner[way[-1]]
    try:
        return family.spec(config, EmptySource())
    except (CheckpointError, UnsupportedModelError) as refusal:
        assert refusal.expected and refusal.next_step
        return None


@ALL
def test_another_value_changes_the_model_or_is_refused(family: Family) -> None:
    config = family.published_config("", "tiny")
    plain = family.spec(config, EmptySource())
    unread = set()
    for way in places(config):
        if all(spec_with(family, way, value) == plain for value in STRANGE):
            unread.add(way[-1])
    assert unread - EVERYWHERE == family.published_code().unread, (
        "keys nothing reads: read or refuse them, or list them under [unread] of the family's published.toml"
    )


@ALL
def test_null_is_what_a_missing_key_is(family: Family) -> None:
    differ = {
        way[-1]
        for way in places(family.published_config("", "tiny"))
        if spec_with(family, way, None) != spec_with(family, way, dropped=True)
    }
    assert differ <= {"num_key_value_heads"}  # null means as many as heads, and the class has a number of its own
