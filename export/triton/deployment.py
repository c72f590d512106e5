"""The files of a whole repository: how it is started, tried, measured and scaled. Templates lie beside this module."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from export.backends.registry import backend_named
from export.triton.layout import PERF, ModelFolder
from runtime_py.backends.registry import held_backends
from runtime_py.contracts import DECODER
from runtime_py.triton.settings import default_settings
from runtime_py.version import VERSION
from targets.registry import targets

TEMPLATES = Path(__file__).parent / "templates"
SMOKE, BUILD, REQUIREMENTS, IGNORED = "smoke_client.py", "build_engines.py", "requirements.txt", ".dockerignore"

BUILD_SCRIPT = '''\
"""Build the engines of every model here, on the machine with the GPU, inside the server's container:

    docker run --rm --gpus all -v $PWD:/models edgeproof-triton:{version} python3 /models/build_engines.py
"""

import os
import subprocess
import sys
from pathlib import Path

failed = 0
for package in sorted(Path(__file__).resolve().parent.glob("*/1/package")):
    runtime = package.parent / "runtime"
    for module in {modules!r}:
        if (runtime / (module.replace(".", "/") + ".py")).is_file():
            command = [sys.executable, "-B", "-m", module, str(package)]
            done = subprocess.run(command, check=False, env={{**os.environ, "PYTHONPATH": str(runtime)}})
            failed += done.returncode != 0
sys.exit(1 if failed else 0)
'''

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
"""Gigabytes of a replica beside its packages' files and the caches of its slots: our own choice, not measured, with
libraries and pictures at work in mind."""
CACHE = "past_key_values."
WIDTHS = {"float16": 2, "bfloat16": 2, "int8": 1}

COMPOSE_GPUS = """\
    deploy:
      resources:
        reservations:
          devices:
            - {driver: nvidia, count: all, capabilities: [gpu]}
"""
ENGINES = """\
Engines of TensorRT for RTX serve compute capability 8.0, 8.6, 8.9 and 12.x (A100, A10, L4, L40S, RTX PRO 6000). For 9.0 and
10.0 (H100, H200, B200), and where the export had no room to build them, one command on the GPU machine builds them from the
graphs here, with the same code:

    docker run --rm --gpus all -v $PWD:/models edgeproof-triton:{version} python3 /models/build_engines.py

Without engines a model runs the ONNX graphs through onnxruntime-gpu, and without a GPU on the processor; its log says
which."""
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
    builders = sorted({name for value in manifests.values() for name in _builders(value)})
    gpus = max((server.gpus for server in servers), default=0)
    needed = sorted({name for server in servers for name in server.distributions}.union(*map(_brought, manifests.values())))
    held = sum(_resident(value) for value in manifests.values())
    values = {
        "version": VERSION,
        "first": next(iter(manifests), "MODEL"),
        "models": "\n".join(_row(name, value) for name, value in manifests.items()),
        "engines": _engines(manifests) if builders else "",
        "memory": f"{SPARE_MEMORY + -(-held // GIGABYTE)}Gi",
        "kubernetes_gpus": f", nvidia.com/gpu: {gpus}" if gpus else "",
        "compose_gpus": COMPOSE_GPUS if gpus else "",
        "analysed": "".join(ANALYSED.format(name=name, perf=PERF) for name in manifests),
    }
    made = {path.name: _filled(path, values) for path in sorted(TEMPLATES.iterdir())}
    made[REQUIREMENTS] = "\n".join((*COMMON, *needed)) + "\n"
    made[SMOKE] = (Path(__file__).parent / SMOKE).read_text(encoding="utf-8")
    made[IGNORED] = "README.md\ncompose.yaml\nkubernetes.yaml\n"
    if builders:
        made[BUILD] = BUILD_SCRIPT.format(version=VERSION, modules=builders)
    return made


def _resident(manifest: Mapping[str, Any]) -> int:
    """Bytes of a package's files and of full caches in every slot."""
    decoder = manifest["contracts"].get(DECODER, {"inputs": []})
    sizes = [tensor["shape"] for tensor in decoder["inputs"] if tensor["name"].startswith(CACHE)]
    told = [block["cache"] for block in manifest["backends"].values() if isinstance(block.get("cache"), str)]
    width = max((WIDTHS.get(name, 4) for name in told), default=4)
    position = sum(math.prod(size for size in shape if isinstance(size, int)) for shape in sizes)
    limits = manifest["limits"]
    caches = default_settings(limits.get("batch", 1)).slots * limits["context"] * position * width
    return sum(row["bytes"] for row in manifest["files"]) + caches


def names() -> list[str]:
    """Of the files that `files` may give."""
    return sorted((*(path.name for path in TEMPLATES.iterdir()), REQUIREMENTS, SMOKE, BUILD, IGNORED))


def _brought(manifest: Mapping[str, Any]) -> list[str]:
    """What code of the package asks for beside what its target needs."""
    return [name for record in held_backends(manifest) for name in record.requirements(record.block(manifest))]


def _builders(manifest: Mapping[str, Any]) -> list[str]:
    """Modules that build on the server what a package may still lack."""
    records = (backend_named(name) for name in targets()[manifest["target"]].backend_names)
    return [record.server_builder for record in records if record.server_builder]


def _engines(manifests: Mapping[str, Mapping[str, Any]]) -> str:
    """What the README says of engines: which there are, for which GPUs, and how the others come to be."""
    lines = ["## Engines", ""]
    for name, manifest in manifests.items():
        if not _builders(manifest):
            continue
        made = [_engine(block) for block in manifest["backends"].values() if "flavour" in block]
        lines.append(f"- {name}: {'; '.join(made) or 'no engines yet, the graphs for them'}.")
    return "\n".join((*lines, "", ENGINES.format(version=VERSION), "", ""))


def _engine(block: Mapping[str, Any]) -> str:
    covered = ", ".join(block["compute_capabilities"])
    where = f"compute capability {covered}" if covered else "the GPU they were built on"
    made_by = f"{block['flavour']} {block['version']}"
    return f"engines by {made_by}, for {where}; the check at export needs no GPU and did not run them"


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
