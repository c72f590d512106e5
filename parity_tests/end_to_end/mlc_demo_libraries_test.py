"""The phone libraries of every family's demo compile, with every kernel scheduled for its device."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.pipeline import export
from export.request import ExportRequest
from export.source.hub import DEMO_FOLDER

pytest.importorskip("tvm")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["android", "ios"])
@pytest.mark.parametrize("model", sorted(path.name for path in DEMO_FOLDER.iterdir() if path.is_dir()))
def test_the_library_is_in_the_package(model: str, target: str, tmp_path: Path) -> None:
    out = export(ExportRequest(model, target, weights="demo", output=tmp_path / "out", skip_verify=True), None)
    assert [path.suffix for path in (out / "mlc" / "lib").iterdir()] == [".tar"]
