"""``--server``: a server that answers right passes; one that mixes up its clients does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime_py
from export.source.hub import DEMO_FOLDER
from parity_tests.check.wire import WireOptions, check_server
from parity_tests.cli import main
from runtime_py.conftest import DEMO_CHECKPOINT
from runtime_py.conftest import exported as demo_package  # noqa: F401  (a fixture)
from runtime_py.engine.service import Sizes
from runtime_py.errors import MachineError, UsageError
from runtime_py.serving.conftest import KEY, Server, running_server

WAIVER = {"name": "allow-long", "meaning": "a context that this test was let off"}


@pytest.fixture(scope="module")
def server(demo_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:  # noqa: F811
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    package = Path(shutil.copytree(demo_package, tmp_path_factory.mktemp("served") / "package"))
    manifest = json.loads((package / "manifest.json").read_text())
    (package / "manifest.json").write_text(json.dumps({**manifest, "waivers": [WAIVER]}))
    with runtime_py.load(package, threads=1) as model, running_server(model, Sizes(slots=4)) as made:
        yield made


def arguments(server: Server, folder: Path, tmp_path: Path) -> list[str]:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    given = ["--server", server.url, "--package", str(server.model.package.folder), "--api-key-file", str(keys)]
    return [*given, "--reference", str(DEMO_CHECKPOINT), "--steps", "8", "--report-dir", str(folder)]


def test_a_server_that_answers_right_passes(server: Server, tmp_path: Path) -> None:
    assert main(arguments(server, tmp_path / "report", tmp_path)) == 0
    run = json.loads((tmp_path / "report" / "run.json").read_text())
    asked = [(row["name"], row["question"]) for row in run["comparisons"]]
    assert asked[:2] == [("wire", "wide"), ("wire", "wide among others")] and len(asked) >= 4
    assert {m["probe"] for row in run["comparisons"] for m in row["measurements"]} == {"greedy_ids", "text"}
    assert run["details"]["waivers"] == [list(WAIVER.values())]


def test_a_server_that_mixes_up_its_clients_does_not(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    together = type(server.model.backend).forward_batch  # type: ignore[attr-defined]

    def mixed(backend: Any, states: Sequence[Any], inputs: Sequence[Any]) -> np.ndarray:
        return np.roll(together(backend, states, inputs), 1, axis=0)

    monkeypatch.setattr(type(server.model.backend), "forward_batch", mixed)
    assert main(arguments(server, tmp_path / "report", tmp_path)) == 5
    assert "among others" in capsys.readouterr().out


def test_another_package_no_server_and_no_reference(server: Server, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="does not answer"):
        check_server("http://127.0.0.1:9", server.model.package.folder)
    with pytest.raises(UsageError, match="is not what the package was made from"):
        check_server(server.url, server.model.package.folder, DEMO_FOLDER / "wemm", WireOptions(key=KEY))
    with pytest.raises(UsageError, match="no server's URL"):
        check_server("https://127.0.0.1:9", server.model.package.folder)
    assert main(["--server", server.url, "--golden", "x"]) == 2
