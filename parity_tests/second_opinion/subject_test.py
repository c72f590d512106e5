"""A checkpoint that is larger than the machine is asked about as many blocks as fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.checkpoint.opened import open_folder
from parity_tests.judging.judge import Verdict
from parity_tests.second_opinion import decoders, subject, towers, whole_model
from parity_tests.second_opinion.opinion import NotComparable, Part
from parity_tests.second_opinion.subject import FLOAT_BYTES, SHARE, SIDES, Subject

pytest.importorskip("transformers")

DEMOS = Path(__file__).parents[2] / "export" / "demo" / "checkpoints"


def room_for(demo: Subject, prefix: str, blocks: float, of: int) -> int:
    """Free bytes in which so many of a stage's blocks fit."""
    sizes = {name: demo.read(name).numel() for name in demo.names(prefix)}
    inside = sum(size for name, size in sizes.items() if ".layers." in name or ".blocks." in name)
    return int((sum(sizes.values()) - inside + inside / of * blocks) * FLOAT_BYTES * SIDES / SHARE)


@pytest.mark.parametrize(
    ("family", "part", "prefix"),
    [("minicpm-v", decoders.PART, "llm."), ("awaker2.5-vl", whole_model.PART, "base_model.model.")],
)
def test_fewer_layers_where_not_all_fit(monkeypatch: pytest.MonkeyPatch, family: str, part: Part, prefix: str) -> None:
    demo = Subject(open_folder(DEMOS / family))
    monkeypatch.setattr(subject, "available_bytes", lambda: room_for(demo, prefix, 2.1, 3))
    said = part.ask(demo)
    assert {opinion.verdict for opinion in said} == {Verdict.PASS}, said
    assert all(opinion.what.endswith(", 2 of 3 layers") for opinion in said)
    monkeypatch.setattr(subject, "available_bytes", lambda: room_for(demo, prefix, 0.5, 3))
    said = part.ask(demo)
    assert [opinion.verdict for opinion in said] == [Verdict.NOT_RUN] and "GB of free memory" in said[0].why


def test_a_tower_is_asked_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = Subject(open_folder(DEMOS / "minicpm-v"))
    monkeypatch.setattr(subject, "available_bytes", lambda: room_for(demo, "vpm.", 2.1, 3))
    with pytest.raises(NotComparable, match=r"\d of its 3 blocks fit"):
        list(towers.siglip(demo))
