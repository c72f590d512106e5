"""The whole way on a tiny real checkpoint: a failed check keeps its package aside, a passed one gets its name."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.command.progress import Progress
from export.package.journal import Journal
from export.pipeline import export, plan
from export.request import ExportRequest
from parity_tests.check.verifier import PackageVerifier
from runtime_py.errors import ParityError, UsageError
from runtime_py.package import read, verify

GOLDENS = Path(__file__).parents[1] / "parity_tests" / "goldens"
CHECK = "check against the reference"


class Meddler(Progress):
    """Changes the checkpoint once the package is built, so that the check finds a real difference."""

    def __init__(self, weights: Path) -> None:
        super().__init__(quiet=True)
        self.weights = weights

    def start(self, step: str, number: int, count: int) -> None:
        super().start(step, number, count)
        if step == CHECK:
            raw = np.fromfile(self.weights, np.uint8)
            floats = raw[-4 * 1024 :].view(np.float32)
            floats += 1.0
            raw.tofile(self.weights)


def test_an_export_says_what_a_dry_run_would(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Before any work: this one ends at the journal of another request."""
    request = ExportRequest(
        model=str(GOLDENS / "minicpm-v"), target="cpu", precision="int4", block_size=128, output=tmp_path / "out",
        without_tokenizer=True, resume=True, skip_verify=True,
    )  # fmt: skip
    notes = plan(request, None).notes
    (tmp_path / "out.partial").mkdir()
    Journal(tmp_path / "out.partial", {"model": "another"}).begin()
    with caplog.at_level(logging.INFO, "edgeproof"), pytest.raises(UsageError, match="another"):
        export(request, None)
    said = [record.getMessage() for record in caplog.records]
    padded = [note for note in notes if "padded to whole blocks" in note]
    assert padded and all(f"note: {note}" in said for note in padded)


def test_a_finished_package_of_other_options_is_no_finished_export(tmp_path: Path) -> None:
    request = ExportRequest(
        model=str(GOLDENS / "minicpm-v"), target="cpu", precision="int4", output=tmp_path / "out",
        without_tokenizer=True, skip_verify=True,
    )  # fmt: skip
    package = export(request, None)
    again = replace(request, resume=True)
    assert export(again, None) == package
    for other in ({"cache": "float32"}, {"preset": "mixed"}):
        with pytest.raises(UsageError, match="exists already"):
            export(replace(again, options=other), None)


def test_a_failed_check_and_then_a_passed_one(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(GOLDENS / "minicpm-v", checkpoint)
    output = tmp_path / "out"
    request = ExportRequest(
        model=str(checkpoint), target="cpu", precision="fp32", output=output, without_tokenizer=True, force=True
    )

    with pytest.raises(ParityError) as caught:
        export(request, PackageVerifier(), Meddler(checkpoint / "model.safetensors"))
    assert "first failure" in caught.value.what
    assert not output.exists()
    failed = json.loads((tmp_path / "out.failed" / "manifest.json").read_text())
    assert failed["verification"]["verdict"] == "fail"
    assert failed["verification"]["first_failure"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "out.failed"}

    shutil.copyfile(GOLDENS / "minicpm-v" / "model.safetensors", checkpoint / "model.safetensors")
    output.mkdir()
    (output / "manifest.json").write_text('{"schema": 2, "edgeproof": "0.1.0", "files": []}')
    progress = Progress(quiet=True)
    assert export(request, PackageVerifier(), progress) == output
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "out", "out.failed"}
    package = read(output)
    verify(package)
    manifest = package.manifest
    assert manifest["verification"]["verdict"] == "pass"
    assert manifest["verification"]["probes"]
    assert [waiver["name"] for waiver in manifest["waivers"]] == ["without-tokenizer"]
    assert manifest["source"]["id"] == "checkpoint"
    hashed = {row["path"]: row["sha256"] for row in manifest["source"]["files"]}
    assert set(hashed) == {"README.md", "config.json", "model.safetensors"}
    published = (GOLDENS / "minicpm-v" / "model.safetensors").read_bytes()
    assert hashed["model.safetensors"] == hashlib.sha256(published).hexdigest()
    assert progress.times[-1].name == CHECK
    assert "onnx decoder" in progress.table()
