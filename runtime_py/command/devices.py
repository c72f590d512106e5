"""What this machine can run packages with: backends, ONNX Runtime's providers, and what keeps the others away."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runtime_py.backends.record import RuntimeBackend
from runtime_py.backends.records import ONNX
from runtime_py.backends.registry import runtime_backends
from runtime_py.errors import MachineError


@dataclass(frozen=True)
class Runner:
    """One way to run a package.

    Attributes:
        backend: a value of ``--backend``.
        provider: a value of ``--provider``; "" where the backend has none.
        ready: whether it starts here; of engines and libraries for a device only whether their library is installed.
        remark: a version, what the device has, or what is missing and what brings it.
    """

    backend: str
    provider: str
    ready: bool
    remark: str


def runners() -> list[Runner]:
    """Every backend that is known, and ONNX Runtime's providers one by one."""
    listed: list[Runner] = []
    for name, record in runtime_backends().items():
        if record is ONNX and importlib.util.find_spec("onnxruntime") is not None:
            listed += _providers(name)
            continue
        version = _installed(record)
        if version is None:
            wanted = record.distributions[0]
            listed.append(Runner(name, "", False, f"not installed: pip install 'edgeproof[{wanted.extra}]'"))
        else:
            listed.append(Runner(name, "", True, version))
    return listed


def lines(listed: Sequence[Runner]) -> list[str]:
    """One line each, in columns."""
    shown = [(runner.backend, runner.provider, "ready" if runner.ready else "no", runner.remark) for runner in listed]
    widths = [max(len(row[column]) for row in shown) for column in range(3)]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in shown]


def as_json(listed: Sequence[Runner]) -> list[dict[str, Any]]:
    return [asdict(runner) for runner in listed]


def _installed(record: RuntimeBackend) -> str | None:
    """Name and version of the first distribution that is here and runs the backend's files."""
    for distribution in record.distributions:
        try:
            return f"{distribution.name} {importlib.metadata.version(distribution.name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _providers(backend: str) -> list[Runner]:
    import onnxruntime

    from runtime_py.backends.webgpu import NAME, PROVIDER

    others = [name for name in onnxruntime.get_available_providers() if name not in (PROVIDER, "AzureExecutionProvider")]
    listed = [Runner(backend, name, True, f"ONNX Runtime {onnxruntime.__version__}") for name in others]
    try:
        return [*listed, Runner(backend, NAME, True, _webgpu(onnxruntime))]
    except MachineError as error:
        return [*listed, Runner(backend, NAME, False, f"{error.what}; {error.next_step}")]


def _webgpu(ort: Any) -> str:
    """What the provider can do on this device; tries it, which compiles its first kernels."""
    from runtime_py.backends.webgpu import webgpu

    provider = webgpu(ort)
    half = "float16" if provider.half else "no float16"
    own = "its own attention" if provider.attention_is_right else "its own attention is wrong here and not used"
    return f"{half}, {own}"
