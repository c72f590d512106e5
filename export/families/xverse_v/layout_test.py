"""Places of XVERSE-V's parts that a checkpoint may name."""

from __future__ import annotations

import pytest

from export.families.xverse_v.layout import places_of
from runtime_py.errors import CheckpointError


def test_published_places() -> None:
    assert places_of({}) == ("clip-vit", "xverse-llm", "adapters")
    assert places_of({"vit_path": "./parts/clip"})[0] == "parts/clip"


@pytest.mark.parametrize(
    "place", ["/etc", "../other", "a/../../b", "", ".", "a\0b", "9" * 300, "é" * 128, "\ud800", "a/" * 9], ids=ascii
)
def test_a_place_outside_or_without_a_name_is_refused(place: str) -> None:
    with pytest.raises(CheckpointError, match="vit_path"):
        places_of({"vit_path": place})
