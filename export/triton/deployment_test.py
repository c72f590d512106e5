"""What a repository's files say of its models: engines, GPUs, memory; and its program that builds engines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from export.backends.registry import backend_named
from export.triton import deployment
from export.triton.layout import ModelFolder
from export.triton.repository import write_model
from export.triton.repository_test import package_at
from targets.registry import target_named

ENGINE = {"flavour": "TensorRT for RTX", "version": "1.7", "compute_capabilities": ["8.6", "12.0"], "stages": {}}


def model(repository: Path, name: str = "one", target: str = "server-gpu", **changed: Any) -> Path:
    """A model whose manifest has these entries; returns its package."""
    package = package_at(repository, name, target)
    path = package / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changed), encoding="utf-8")
    write_model(package, target_named(target))
    return package


def test_the_readme_says_which_engines_there_are_and_how_others_come_to_be(tmp_path: Path) -> None:
    graphs: dict[str, Any] = {"onnx": {}}
    model(tmp_path, "bare", backends=graphs)
    model(tmp_path, "built", backends=graphs | {"tensorrt": ENGINE})
    model(tmp_path, "here", backends=graphs | {"tensorrt": ENGINE | {"compute_capabilities": []}})
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    made = "engines by TensorRT for RTX 1.7, for {}; the check at export needs no GPU and did not run them."
    assert "\n- bare: no engines yet, the graphs for them.\n" in text
    assert f"\n- built: {made.format('compute capability 8.6, 12.0')}\n" in text
    assert f"\n- here: {made.format('the GPU they were built on')}\n" in text
    assert "/models/build_engines.py" in text


def test_a_repository_for_processors_alone_speaks_of_no_gpu(tmp_path: Path) -> None:
    model(tmp_path, target="server-cpu")
    assert not (tmp_path / deployment.BUILD).exists()
    assert "build_engines" not in (tmp_path / "README.md").read_text(encoding="utf-8")
    for name in ("compose.yaml", "kubernetes.yaml"):
        assert "gpu" not in (tmp_path / name).read_text(encoding="utf-8"), name
    assert "kind: KIND_CPU" in (tmp_path / "one" / "config.pbtxt").read_text(encoding="utf-8")
    model(tmp_path, "two")  # one model for GPUs beside it
    assert "nvidia.com/gpu: 1}" in (tmp_path / "kubernetes.yaml").read_text(encoding="utf-8")
    assert "capabilities: [gpu]" in (tmp_path / "compose.yaml").read_text(encoding="utf-8")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "- two: no engines yet" in text and "- one: " not in text
    assert "kind: KIND_AUTO" in (tmp_path / "two" / "config.pbtxt").read_text(encoding="utf-8")
    lines = (tmp_path / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [*deployment.COMMON, *sorted(lines[len(deployment.COMMON) :])], "not in the order of a set"


@pytest.mark.parametrize(
    ("cache", "batch", "gigabytes"),
    [
        (None, 1, 5 + 4 + 3),
        ("float32", 1, 5 + 4 + 3),
        ("float16", 1, 5 + 2 + 3),
        ("int8", 1, 5 + 1 + 3),
        ("float32", 2, 5 + 1 + 3),
    ],
)
def test_a_replica_has_room_for_files_and_for_full_caches_of_every_slot(
    tmp_path: Path, cache: str | None, batch: int, gigabytes: int
) -> None:
    """A position takes 2 Mi numbers here, keys and values together: 64 of them in 8 slots a Gi of bytes."""
    sizes = [
        {"name": f"past_key_values.0.{half}", "shape": ["batch", 1 << 10, "past", 1 << 10]} for half in ("key", "value")
    ]
    tensors = [{"name": "merged", "shape": ["batch", "tokens", 1 << 20]}, *sizes]
    package = model(
        tmp_path,
        target="server-cpu",
        backends={"onnx": {} if cache is None else {"cache": cache}},
        contracts={"decoder": {"inputs": tensors}},
        limits={"context": 64, "batch": batch},
    )
    assert f"memory: {gigabytes}Gi" in (tmp_path / "kubernetes.yaml").read_text(encoding="utf-8")
    assert package.is_dir()


@pytest.mark.parametrize("code", [0, 3])
def test_engines_are_built_for_every_model_and_a_failure_is_told(tmp_path: Path, code: int) -> None:
    module = backend_named("tensorrt").server_builder.replace(".", "/") + ".py"
    for name in ("one", "two"):
        model(tmp_path, name)
        builder = ModelFolder(tmp_path, name).version / "runtime" / module
        assert builder.is_file()
        ends = code if name == "one" else 0
        builder.write_text(
            f"import sys; from pathlib import Path; (Path(sys.argv[1]) / 'built').touch(); sys.exit({ends})",
            encoding="utf-8",
        )
    done = subprocess.run([sys.executable, str(tmp_path / deployment.BUILD)], check=False, timeout=60, cwd=tmp_path)
    assert done.returncode == bool(code)
    assert all((ModelFolder(tmp_path, name).package / "built").is_file() for name in ("one", "two"))
