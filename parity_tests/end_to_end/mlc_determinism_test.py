"""The same export twice: every file of a phone package has the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.pipeline import export
from export.request import ExportRequest
from parity_tests.conftest import GOLDENS
from parity_tests.laboratory.mlc_ladder.rungs import DEMO

CASES = [(DEMO, "android"), (DEMO, "ios"), (GOLDENS / "awaker2.5-vl", "android")]


def written(checkpoint: Path, target: str, folder: Path) -> dict[str, str]:
    """Path to sha256 of every file of a fresh export."""
    request = ExportRequest(
        model=str(checkpoint), target=target, output=folder, skip_verify=True, without_tokenizer=checkpoint != DEMO
    )
    manifest = json.loads((export(request, None) / "manifest.json").read_text(encoding="utf-8"))
    return {row["path"]: row["sha256"] for row in manifest["files"]}


@pytest.mark.slow
@pytest.mark.parametrize(("checkpoint", "target"), CASES, ids=lambda value: getattr(value, "name", value))
def test_the_same_export_gives_the_same_bytes(tmp_path: Path, checkpoint: Path, target: str):
    first, second = (written(checkpoint, target, tmp_path / name) for name in ("first", "second"))
    assert {Path(path).suffix for path in first} >= {".tar", ".so", ".bin", ".json"}
    assert [path for path in first if first[path] != second.get(path)] == []
    assert set(first) == set(second)
