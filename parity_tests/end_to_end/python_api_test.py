"""The code of docs/python_api.md, run in its order beside a demo's package, as a reader types it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.pipeline import export
from export.request import ExportRequest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(?:^    .*\n(?:\n(?=    ))?)+", re.MULTILINE)


def blocks() -> Iterator[str]:
    """Indented code of the page that is Python; lines of a shell are not."""
    text = (ROOT / "docs" / "python_api.md").read_text(encoding="utf-8")
    for block in BLOCK.findall(text):
        code = re.sub(r"^    ", "", block, flags=re.MULTILINE)
        if not code.startswith("python -m "):
            yield code


def test_the_page_runs_from_its_first_line_to_its_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(ExportRequest("minicpm-v", "cpu", weights="demo", output=tmp_path / "out", skip_verify=True), None)
    shutil.copy(ROOT / "export" / "demo" / "samples" / "shapes.png", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    codes = list(blocks())
    assert len(codes) == 5
    for code in codes:
        exec(compile(code, "docs/python_api.md", "exec"), names)
    model = names["model"]
    assert hasattr(model, "close")
    model.close()
