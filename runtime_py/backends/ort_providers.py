"""Which ONNX Runtime this is: its version, its providers, and where CUDA's libraries lie."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from runtime_py.backends.records import ONNX
from runtime_py.errors import MachineError

log = logging.getLogger("edgeproof")

CPU = "CPUExecutionProvider"
DEVICES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}
"""Where a provider is given its tensors; every other one is given the processor's memory, which it reads or copies."""

LOWEST = ONNX.distributions[0].lowest
"""The oldest ONNX Runtime that loads the graphs: they are written in opset 23, which 1.22 refuses."""

LOWEST_OF_BYTES = (1, 32)
"""The oldest ONNX Runtime that was seen to keep a cache in bytes on the processor."""


def refuse_old(version: str) -> None:
    """Nothing where an ONNX Runtime of this version loads the graphs of a package.

    Raises:
        MachineError: it is older than `LOWEST`.
    """
    if _release(version) < LOWEST:
        lowest = ".".join(map(str, LOWEST))
        raise MachineError(
            f"ONNX Runtime {version} is too old for the graphs of a package",
            f"ONNX Runtime {lowest} or later",
            f"pip install 'onnxruntime>={lowest}'",
        )


def refuse_bytes(version: str, providers: Sequence[str]) -> None:
    """Nothing where an ONNX Runtime of this version and these providers run a decoder whose cache holds bytes.

    Raises:
        MachineError: it is older than `LOWEST_OF_BYTES`, or the first provider is not the processor.
    """
    lowest = ".".join(map(str, LOWEST_OF_BYTES))
    if _release(version) < LOWEST_OF_BYTES:
        raise MachineError(
            f"ONNX Runtime {version} is too old for a cache in bytes (--cache-precision int8)",
            f"ONNX Runtime {lowest} or later",
            f"pip install 'onnxruntime>={lowest}', or export without the flag",
        )
    if providers[0] != CPU:
        raise MachineError(
            f"{providers[0]} with a package whose cache is in bytes (--cache-precision int8)",
            f"the processor ({CPU}), for which its scales and operators are",
            "leave the provider out, or export without the flag",
        )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def available(onnxruntime: Any, wanted: Sequence[str]) -> list[str]:
    """The providers in order of preference, the processor behind them.

    Raises:
        MachineError: this ONNX Runtime has not all of them.
    """
    present = onnxruntime.get_available_providers()
    missing = [provider for provider in wanted if provider not in present]
    if missing:
        raise MachineError(
            f"this ONNX Runtime has no {', '.join(missing)}",
            "one of " + ", ".join(present),
            "pip install 'edgeproof[gpu]' on a machine with a CUDA device, or leave the provider out",
        )
    return [*wanted, *([CPU] if CPU not in wanted else [])]


def find_cuda(onnxruntime: Any) -> None:
    """Load the CUDA libraries of the nvidia-* packages, where the dynamic linker does not look by itself."""
    said = io.StringIO()
    with redirect_stdout(said):
        onnxruntime.preload_dlls()
    if said.getvalue():
        log.debug("onnxruntime.preload_dlls: %s", said.getvalue().strip())
