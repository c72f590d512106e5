"""What this machine can run packages with: backends, ONNX Runtime's providers, and what keeps the others away."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runtime_py.backends.record import Ability, RuntimeBackend
from runtime_py.backends.registry import runtime_backends
from runtime_py.errors import MachineError


@dataclass(frozen=True)
class Runner:
    """One way to run a package.

    Attributes:
        backend: a value of ``--backend``.
        provider: a value of ``--provider``; "" for the backend as a whole.
        ready: whether it starts here; of backends without providers only whether their library is installed; None of a
            provider that was not tried.
        remark: a version, what the device has, or what is missing and what brings it.
    """

    backend: str
    provider: str
    ready: bool | None
    remark: str


def runners() -> list[Runner]:
    """Every backend that is known, and ONNX Runtime's providers one by one."""
    listed: list[Runner] = []
    for name, record in runtime_backends().items():
        if record.can(Ability.PROVIDERS) and importlib.util.find_spec("onnxruntime") is not None:
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
    words = {True: "ready", False: "no", None: "not tried"}
    shown = [(runner.backend, runner.provider, words[runner.ready], runner.remark) for runner in listed]
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
    """ONNX Runtime's providers; WebGPU's is tried, and the processor's needs no trial. One line where it is too old."""
    import onnxruntime

    from runtime_py.backends.ort_providers import CPU, refuse_old
    from runtime_py.backends.webgpu import NAME, PROVIDER

    try:
        refuse_old(onnxruntime.__version__)
    except MachineError as error:
        return [Runner(backend, "", False, _missing(error))]
    others = [name for name in onnxruntime.get_available_providers() if name not in (PROVIDER, "AzureExecutionProvider")]
    version = f"ONNX Runtime {onnxruntime.__version__}"
    listed = [Runner(backend, name, True if name == CPU else None, version) for name in others]
    try:
        return [*listed, Runner(backend, NAME, True, _webgpu(onnxruntime))]
    except MachineError as error:
        return [*listed, Runner(backend, NAME, False, _missing(error))]


def _missing(error: MachineError) -> str:
    return f"{error.what}; {error.next_step}"


def _webgpu(ort: Any) -> str:
    """What the provider can do on this device; tries it, which compiles its first kernels."""
    from runtime_py.backends.webgpu import webgpu

    provider = webgpu(ort)
    half = "float16" if provider.half else "no float16"
    own = "its own attention" if provider.attention_is_right else "its own attention is wrong here and not used"
    return f"{half}, {own}"
