"""A package that a test may change, and how somebody forges one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime_py.package.files import rows_of

Manifest = dict[str, Any]
Edit = Callable[[Manifest], None]


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def edit(folder: Path, change: Edit) -> None:
    """Change a manifest and make its file hashes true again, as somebody who forges one does."""
    path = folder / "manifest.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    kept = [row for row in rows_of(folder) if row["path"] != "manifest.json"]
    value["files"] = kept
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")
