"""What CogVLM2's published code has as literals, which no file of a checkpoint changes."""

from __future__ import annotations

from typing import Any

import pytest

from export.families.cogvlm2.family import FAMILY, THETA
from export.source.tensor_source import EmptySource
from runtime_py.errors import UnsupportedModelError


@pytest.mark.parametrize(
    "stated", [{"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope_theta": 10000.0}]
)
def test_another_rotary_base_is_refused(stated: dict[str, Any]) -> None:
    config = FAMILY.published_config("", "tiny")
    assert FAMILY.spec(config, EmptySource()).decoder.rope.theta == THETA
    with pytest.raises(UnsupportedModelError, match="rope_theta"):
        FAMILY.spec({**config, **stated}, EmptySource())
