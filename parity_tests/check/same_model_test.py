"""A reference is the package's own checkpoint, or at least one with its config.json; a calibration is its own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.quantisation.stored import SCHEMA
from parity_tests.check.same_model import require_same_model
from runtime_py.errors import UsageError

CONFIG = b'{"hidden_size": 8}'
PLAIN = {"family": "wemm", "variant": "1.0", "runtime": {"size": 14}}


def required(folder: Path, files: Any, **given: Any) -> None:
    """Hold a package made from ``PLAIN`` beside a checkpoint that is other in ``given``."""
    (folder / "config.json").write_bytes(CONFIG)
    candidate: Any = SimpleNamespace(manifest={**PLAIN, "source": {"files": files}})
    checkpoint: Any = SimpleNamespace(folder=folder, spec=SimpleNamespace(**{**PLAIN, **given}), calibration=None)
    require_same_model(candidate, checkpoint)


def rows(content: bytes) -> list[dict[str, str]]:
    return [{"path": "config.json", "sha256": hashlib.sha256(content).hexdigest()}]


def test_the_same_model_and_other_settings_beside_the_same_config_are_taken(tmp_path: Path) -> None:
    required(tmp_path, None)
    required(tmp_path, rows(CONFIG), runtime={"size": 28})  # which is for the check to judge


@pytest.mark.parametrize(
    ("files", "given"),
    [
        (rows(CONFIG), {"family": "xverse-v"}),
        (rows(CONFIG), {"variant": "2.0"}),
        (rows(b"{}"), {"runtime": {"size": 28}}),
        ([], {"runtime": {"size": 28}}),
        (None, {"runtime": {"size": 28}}),
    ],
)
def test_another_model_is_refused(tmp_path: Path, files: Any, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="is not what the package was made from"):
        required(tmp_path, files, **given)


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        (None, "holds no calibrated codes"),
        ({"manifest_sha256": hashlib.sha256(b"other").hexdigest()}, "is not the calibration that"),
    ],
)
def test_another_calibration_is_refused_and_no_fault_of_the_package(
    tmp_path: Path, stated: dict[str, str] | None, said: str
) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"kind": "calibration", "schema": SCHEMA, "backends": {}, "files": []}))
    block = {} if stated is None else {"calibration": stated}
    candidate: Any = SimpleNamespace(manifest={**PLAIN, "source": {}}, block=block, folder=tmp_path)
    checkpoint: Any = SimpleNamespace(folder=tmp_path, spec=SimpleNamespace(**PLAIN), calibration=tmp_path)
    with pytest.raises(UsageError, match=said):
        require_same_model(candidate, checkpoint)
    candidate.block = {"calibration": {"manifest_sha256": hashlib.sha256(manifest.read_bytes()).hexdigest()}}
    require_same_model(candidate, checkpoint)
