"""A plan without weights: an alias stands for its published config, unless a revision of it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.checkpoint import opened
from export.checkpoint.opened import describe_checkpoint
from export.request import ExportRequest

GOLDEN = Path(__file__).parents[2] / "parity_tests" / "goldens" / "minicpm-v"


def test_an_asked_revision_is_fetched_and_not_taken_for_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def fetched(hub_id: str, revision: str | None) -> Path:
        asked.append((hub_id, revision))
        return GOLDEN

    monkeypatch.setattr(opened, "_configs_of", fetched)
    published = describe_checkpoint(ExportRequest("minicpm-v", "cpu"))
    assert asked == [] and published.id == "openbmb/MiniCPM-V" and published.revision is None
    other = describe_checkpoint(ExportRequest("minicpm-v", "cpu", revision="f00d"))
    assert asked == [("openbmb/MiniCPM-V", "f00d")]
    assert (other.id, other.revision) == ("openbmb/MiniCPM-V", GOLDEN.name)
    assert other.spec.decoder.hidden < published.spec.decoder.hidden
