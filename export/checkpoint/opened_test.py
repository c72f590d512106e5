"""A plan without weights: an alias stands for its published config, unless a revision of it is asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from export.checkpoint import opened
from export.checkpoint.opened import describe_checkpoint
from export.request import ExportRequest
from runtime_py.errors import CheckpointError

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


def test_a_folder_of_weights_is_checked_and_one_without_is_planned_from_its_config(tmp_path: Path) -> None:
    for given in (ExportRequest(str(GOLDEN), "cpu"), ExportRequest("minicpm-v", "cpu", weights=str(GOLDEN))):
        whole = describe_checkpoint(given)
        assert whole.weights is not None and whole.folder == GOLDEN
    bare = Path(shutil.copytree(GOLDEN, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors")))
    planned = describe_checkpoint(ExportRequest("minicpm-v", "cpu", weights=str(bare)))
    assert planned.weights is None and planned.id == "bare" and planned.spec == whole.spec
    broken = Path(shutil.copytree(GOLDEN, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        describe_checkpoint(ExportRequest(str(broken), "cpu"))
