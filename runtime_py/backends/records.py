"""The backends that come with the product: the one place where their names are written down.

Openers import a backend's module when they are called; reading this file imports no library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime_py.backends.record import Ability, Distribution, OpeningChoices, RuntimeBackend

if TYPE_CHECKING:
    from runtime_py.backends.mlc import MlcBackend
    from runtime_py.backends.ort import OrtBackend
    from runtime_py.backends.trt import TrtBackend


def _open_ort(folder: Path, manifest: Mapping[str, Any], chosen: OpeningChoices) -> OrtBackend:
    from runtime_py.backends.ort import OrtBackend

    return OrtBackend(folder, manifest, providers=chosen.providers or None, threads=chosen.threads)


def _open_mlc(folder: Path, manifest: Mapping[str, Any], _chosen: OpeningChoices) -> MlcBackend:
    from runtime_py.backends.mlc import MlcBackend

    return MlcBackend(folder, manifest)


def _open_trt(folder: Path, manifest: Mapping[str, Any], _chosen: OpeningChoices) -> TrtBackend:
    from runtime_py.backends.trt import TrtBackend

    return TrtBackend(folder, manifest)


def _stage_files(block: Mapping[str, Any]) -> list[str]:
    return [entry["file"] for entry in block.get("stages", {}).values()]


def _named(block: Mapping[str, Any], *keys: str) -> list[str]:
    return [block[key] for key in keys if block.get(key) is not None]


def _strange_tensors(folder: Path, block: Mapping[str, Any], rows: set[str]) -> Iterator[tuple[str, str]]:
    from runtime_py.backends.onnx_files import unlisted

    for file in _stage_files(block):
        yield from ((file, name) for name in unlisted(folder / file, file, rows))


ONNX = RuntimeBackend(
    name="onnx",
    runtime_name="ort",
    files="ONNX graphs",
    distributions=(
        Distribution("onnxruntime", ">=1.23,<2", "onnx"),
        Distribution("onnxruntime-gpu", ">=1.23,<2", "gpu"),
    ),
    open=_open_ort,
    modules=("onnxruntime", "onnx", "onnx_ir", "onnxscript"),
    abilities=frozenset(
        {
            Ability.REWIND,
            Ability.SEVERAL_SEQUENCES,
            Ability.WITHOUT_DEVICE,
            Ability.THREADS,
            Ability.PROVIDERS,
            Ability.IN_PIECES,
            Ability.EXACT_COPY,
            Ability.DATA,
        }
    ),
    data=_stage_files,
    strange_references=_strange_tensors,
)

MLC = RuntimeBackend(
    name="mlc",
    runtime_name="mlc",
    files="MLC library",
    distributions=(Distribution("apache-tvm", ">=0.27,<0.28", "mlc"),),
    open=_open_mlc,
    modules=("tvm", "tvm_ffi"),
    abilities=frozenset({Ability.REWIND, Ability.SEVERAL_SEQUENCES, Ability.WITHOUT_DEVICE, Ability.IN_PIECES}),
    threads_advice="set TVM_NUM_THREADS in the environment",
    data=lambda block: _named(block, "weights"),
    code=lambda block: _named(block, "host_library", "device_library"),
)

TENSORRT = RuntimeBackend(
    name="tensorrt",
    runtime_name="trt",
    files="TensorRT engines",
    distributions=(Distribution("tensorrt-rtx", ">=1.7,<2", "tensorrt"),),
    open=_open_trt,
    modules=("tensorrt_rtx", "tensorrt"),
    abilities=frozenset({Ability.REWIND}),
    code=_stage_files,
)

BUILT_IN = (ONNX, MLC, TENSORRT)
