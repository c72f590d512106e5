"""Build one engine in a process of its own, so that its memory is freed, and measured, with it.

Run as ``python -m export.backends.tensorrt.engine_process REQUEST.json``; the request is `EngineRequest` as JSON, the
result one JSON object on the last line of stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from export.backends.tensorrt.flavour import load_flavour
from export.backends.tensorrt.network import finish_attention, parse_network
from runtime_py.errors import EdgeproofError, MachineError
from runtime_py.memory import peak_resident_bytes


@dataclass(frozen=True)
class EngineRequest:
    """What to build.

    Attributes:
        profiles: per profile, input name to least, typical and greatest shape.
        attention_inputs: names of the query and key tensors of the graph's `Attention` nodes.
        exact: float32 products in float32, not TF32.
    """

    onnx_file: str
    engine_file: str
    flavour: str
    profiles: list[dict[str, list[list[int]]]]
    attention_inputs: list[str]
    batch: int
    exact: bool


@dataclass(frozen=True)
class EngineResult:
    """What came of it; ``peak_bytes`` is the process's resident memory at its highest."""

    bytes: int
    seconds: float
    peak_bytes: int
    attention_layers: int
    log: list[str]


def build_engine(request: EngineRequest) -> EngineResult:
    """Parse, build and write ``engine_file`` through a temporary name."""
    started = time.monotonic()
    flavour = load_flavour(request.flavour)
    trt = flavour.module
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = parse_network(trt, builder, Path(request.onnx_file))
    layers = finish_attention(trt, network, request.batch, frozenset(request.attention_inputs))
    config = builder.create_builder_config()
    if request.exact:
        config.clear_flag(trt.BuilderFlag.TF32)  # set by default; it keeps 10 bits of a factor's 23
    for shapes in request.profiles:
        profile = builder.create_optimization_profile()
        for name, (least, typical, greatest) in shapes.items():
            profile.set_shape(name, tuple(least), tuple(typical), tuple(greatest))
        # the profile's number, or -1
        if config.add_optimization_profile(profile) < 0:
            raise MachineError("TensorRT refuses a profile", "valid shapes", "; ".join(logger.lines) or "see the log")
    engine = Path(request.engine_file)
    partial = engine.with_name(engine.name + ".partial")
    with partial.open("wb") as file:
        built = builder.build_serialized_network_to_stream(network, config, _writer(trt, file))
        file.flush()
        os.fsync(file.fileno())
    if not built:
        partial.unlink()
        raise MachineError(
            f"TensorRT {flavour.version} could not build {engine.name}: " + "; ".join(logger.lines),
            "a network that TensorRT has kernels for",
            "report this message; the ONNX graphs of the same package run in onnxruntime-gpu",
        )
    partial.replace(engine)
    seconds = time.monotonic() - started
    return EngineResult(engine.stat().st_size, seconds, peak_resident_bytes(), layers, logger.lines)


def _logger(trt: Any) -> Any:
    class Collector(trt.ILogger):
        """Keeps warnings and errors as lines."""

        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.value <= trt.ILogger.Severity.WARNING.value and message not in self.lines:
                self.lines.append(message)

    return Collector()


def _writer(trt: Any, file: Any) -> Any:
    class FileWriter(trt.IStreamWriter):
        """Writes the engine as it is made, instead of holding a second copy."""

        def write(self, data: bytes) -> int:
            return file.write(data)

    return FileWriter()


def main(path: str) -> int:
    request = EngineRequest(**json.loads(Path(path).read_text(encoding="utf-8")))
    try:
        answer: dict[str, Any] = asdict(build_engine(request))
    except EdgeproofError as error:
        answer = {"error": type(error).__name__, "what": error.what, "expected": error.expected, "next": error.next_step}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
