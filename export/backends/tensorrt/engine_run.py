"""An engine from what its stage's graph and profiles say, built in a process of its own. No PyTorch: a server builds too."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.backends.tensorrt.engine_process import EngineRequest
from export.backends.tensorrt.flavour import Flavour
from runtime_py.errors import EdgeproofError, MachineError, UnsupportedModelError

DETERMINISTIC = False
"""Whether equal inputs give equal engines. TensorRT for RTX 1.7.1 orders its kernels differently from run to run, also with
one thread and fixed addresses; TensorRT picks kernels by timing them. What goes in (the ONNX file) is equal."""


def build_source(source: Path, engine: Path, flavour: Flavour) -> dict[str, Any]:
    """Build the engine of a stage from its kept graph; returns what is known about it, as `engine_record`.

    Args:
        source: the description that `export.backends.tensorrt.engine_sources` wrote beside the graph.

    Raises:
        MachineError: the build died or TensorRT failed.
        UnsupportedModelError: TensorRT cannot express the stage.
    """
    value = json.loads(source.read_text(encoding="utf-8"))
    request = EngineRequest(
        onnx_file=str((source.parent / value["onnx_file"]).resolve()),
        engine_file=str(engine.resolve()),
        flavour=flavour.name,
        profiles=[profile["shapes"] for profile in value["profiles"]],
        attention_inputs=value["attention_inputs"],
        batch=value["batch"],
        exact=value["exact"],
    )
    with tempfile.TemporaryDirectory() as folder:
        run_request(request, Path(folder) / "request.json")
    return engine_record(flavour, value["profiles"])


def engine_record(flavour: Flavour, profiles: Sequence[Any]) -> dict[str, Any]:
    """What is known about an engine: who built it, for which GPUs and which sizes."""
    return {
        "flavour": flavour.name,
        "version": flavour.version,
        "compute_capabilities": list(flavour.compute_capabilities),
        "timing_cache": None,
        "deterministic": DETERMINISTIC,
        "profiles": list(profiles),
    }


def run_request(request: EngineRequest, path: Path) -> dict[str, Any]:
    """Build an engine in a process of its own; its result (engine_process.EngineResult) as a dictionary.

    Raises:
        MachineError: the process died without an answer, or TensorRT failed.
    """
    path.write_text(json.dumps(asdict(request)), encoding="utf-8")
    command = [sys.executable, "-m", "export.backends.tensorrt.engine_process", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        killed = "it was killed, most likely for memory" if done.returncode == -9 else f"exit status {done.returncode}"
        raise MachineError(
            f"the TensorRT build of {Path(request.engine_file).name} ended without an engine: {killed}",
            "an engine; the last words were: " + (done.stderr.strip()[-500:] or "none"),
            "free some memory, or use a machine with more",
        )
    answer: dict[str, Any] = json.loads(lines[-1])
    if "error" in answer:
        kinds: dict[str, type[EdgeproofError]] = {"UnsupportedModelError": UnsupportedModelError}
        raise kinds.get(answer["error"], MachineError)(answer["what"], answer["expected"], answer["next"])
    return answer
