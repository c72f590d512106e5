"""The files of a whole repository: how it is started, tried, measured and scaled. Templates lie beside this module."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from export.triton.layout import PERF, ModelFolder
from runtime_py.version import VERSION
from targets.registry import targets

TEMPLATES = Path(__file__).parent / "templates"
SMOKE = "smoke_client.py"

COMMON = (
    "numpy>=1.26,<2",
    "pillow>=10.4,<14",
    "tokenizers>=0.20,<0.24",
    "sentencepiece>=0.2.1,<0.3",
    "llguidance>=1,<2",
)
"""What every model's runtime needs: pyproject.toml's dependencies, NumPy below 2, and what keeps answers to a schema."""

GIGABYTE = 1 << 30
SPARE_MEMORY = 3
"""Gigabytes of a replica beside its packages' files: libraries, caches of the slots, pictures at work."""

COMPOSE_GPUS = """\
    deploy:
      resources:
        reservations:
          devices:
            - {driver: nvidia, count: all, capabilities: [gpu]}
"""
ANALYSED = """\
  {name}:
    parameters:
      batch_sizes: [1]
      concurrency: [1, 4, 8]
    perf_analyzer_flags:
      streaming: true
      input-data: [{name}/{perf}]
"""


def files(models: Sequence[ModelFolder]) -> dict[str, str]:
    """Name to text of every file beside the models' folders."""
    manifests = {model.name: _manifest(model) for model in models}
    servers = [server for value in manifests.values() if (server := targets()[value["target"]].server) is not None]
    gpus = max((server.gpus for server in servers), default=0)
    needed = sorted({name for server in servers for name in server.distributions})
    weights = sum(row["bytes"] for value in manifests.values() for row in value["files"])
    values = {
        "version": VERSION,
        "models": "\n".join(_row(name, value) for name, value in manifests.items()),
        "engines": "",
        "memory": f"{SPARE_MEMORY + -(-weights // GIGABYTE)}Gi",
        "kubernetes_gpus": f", nvidia.com/gpu: {gpus}" if gpus else "",
        "compose_gpus": COMPOSE_GPUS if gpus else "",
        "analysed": "".join(ANALYSED.format(name=name, perf=PERF) for name in manifests),
    }
    made = {path.name: _filled(path, values) for path in sorted(TEMPLATES.iterdir())}
    made["requirements.txt"] = "\n".join((*COMMON, *needed)) + "\n"
    made[SMOKE] = (Path(__file__).parent / SMOKE).read_text(encoding="utf-8")
    made[".dockerignore"] = "env\nREADME.md\ncompose.yaml\nkubernetes.yaml\n"
    return made


def names() -> list[str]:
    """Of the files that `files` gives."""
    return sorted((*(path.name for path in TEMPLATES.iterdir()), "requirements.txt", SMOKE, ".dockerignore"))


def _manifest(model: ModelFolder) -> Mapping[str, Any]:
    value: Mapping[str, Any] = json.loads((model.package / "manifest.json").read_text(encoding="utf-8"))
    return value


def _row(name: str, manifest: Mapping[str, Any]) -> str:
    tools = ", ".join(f"{tool} {version}" for tool, version in manifest["tools"].items())
    cells = (
        name,
        manifest["family"],
        manifest["target"],
        manifest["precision"],
        manifest["limits"]["context"],
        manifest["verification"]["verdict"],
        f"edgeproof {manifest['edgeproof']}, {tools}",
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _filled(path: Path, values: Mapping[str, str]) -> str:
    text = path.read_text(encoding="utf-8")
    if path.name == "Dockerfile":  # its own variables begin with a dollar sign too
        return text
    return Template(text).substitute(values).rstrip("\n") + "\n"
