"""Exports for servers as a user types them: two models in one repository, packages whole, a finished one left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.__main__ import main as export
from export.triton.layout import models_in
from runtime_py.package import differences, read


@pytest.mark.slow
def test_two_models_in_one_repository(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    repository = tmp_path / "repo"
    for name, target in (("minicpm-v", "server-cpu"), ("xverse-v", "server-gpu")):
        assert export(["--model", name, "--weights", "demo", "--target", target, "-q", "-o", str(repository)]) == 0
    models = models_in(repository)
    assert [model.name for model in models] == ["minicpm-v", "xverse-v"]
    for model in models:
        package = read(model.package)
        assert differences(package) == []
        assert package.manifest["verification"]["verdict"] == "pass"
        assert (model.folder / "config.pbtxt").is_file() and (model.version / "model.py").is_file()
    readme = (repository / "README.md").read_text(encoding="utf-8")
    assert "| minicpm-v |" in readme and "| xverse-v |" in readme and (repository / "build_engines.py").is_file()
    assert not list(repository.rglob("*.partial"))
    again = ["--model", "minicpm-v", "--weights", "demo", "--target", "server-cpu", "-q", "-o", str(repository)]
    assert export([*again, "--resume"]) == 0  # finished: nothing is done
    assert export(again) != 0  # and nothing is overwritten
