"""The backends that come with the product: the one place where their names are written down.

Openers import a backend's module when they are called; reading this file imports no library.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime_py.backends.record import Ability, Distribution, NamedPaths, OpeningChoices, RuntimeBackend

if TYPE_CHECKING:
    from runtime_py.backends.mlc import MlcBackend
    from runtime_py.backends.ort import OrtBackend
    from runtime_py.backends.trt import TrtBackend


def _open_ort(folder: Path, manifest: Mapping[str, Any], chosen: OpeningChoices) -> OrtBackend:
    from runtime_py.backends.ort import OrtBackend

    return OrtBackend(folder, manifest, chosen.providers or None, chosen.threads, own_code=chosen.own_code)


def _open_mlc(folder: Path, manifest: Mapping[str, Any], _chosen: OpeningChoices) -> MlcBackend:
    from runtime_py.backends.mlc import MlcBackend

    return MlcBackend(folder, manifest)


def _open_trt(folder: Path, manifest: Mapping[str, Any], _chosen: OpeningChoices) -> TrtBackend:
    from runtime_py.backends.trt import TrtBackend

    return TrtBackend(folder, manifest)


INT8_CACHE = "int8"
"""Of ``cache`` in the ONNX block: keys and values in bytes, whose scales are constants of the decoder's graph."""

MANY_ROWS = "many_rows"
"""Key of a second decoder, for calls of many rows, in the block of ONNX graphs."""


DECODER_LIBRARY = "decoder_library"
"""Key of the decoder as machine code in the block of ONNX graphs: ``libraries`` by variant, their ``index``, ``tvm``."""

VISION_LIBRARY = "vision_library"
"""Key of the vision tower as machine code in that block, with the same three."""

HOST_KERNELS = "host_kernels"
"""Key of an MLC package's kernels for processors with more instructions than its ``host_library`` needs, by variant."""

COMPILED = (DECODER_LIBRARY, VISION_LIBRARY)


def _stage_files(block: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(entry["file"] for entry in block.get("stages", {}).values())


def _graphs(block: Mapping[str, Any]) -> NamedPaths:
    second = (block[MANY_ROWS]["file"],) if MANY_ROWS in block else ()
    files = (*_stage_files(block), *block.get("further_graphs", {}).values(), *second)
    compiled = [block[key] for key in COMPILED if key in block]
    code = tuple(file for each in compiled for file in each["libraries"].values())
    return NamedPaths(data=(*files, *(each["index"] for each in compiled)), code=code, graphs=files)


def _compiler_runtime(block: Mapping[str, Any]) -> tuple[str, ...]:
    return next(((f"apache-tvm=={block[key]['tvm']}",) for key in COMPILED if key in block), ())


def _libraries(block: Mapping[str, Any]) -> NamedPaths:
    libraries = tuple(block[key] for key in ("host_library", "device_library") if block.get(key) is not None)
    code = (*libraries, *block.get(HOST_KERNELS, {}).values())
    return NamedPaths(data=(block["weights"],) if block.get("weights") is not None else (), code=code)


def _engines(block: Mapping[str, Any]) -> NamedPaths:
    return NamedPaths(code=_stage_files(block))


ONNX = RuntimeBackend(
    name="onnx",
    runtime_name="ort",
    files="ONNX graphs",
    distributions=(
        Distribution("onnxruntime", ">=1.23,<2", "onnx"),
        Distribution("onnxruntime-gpu", ">=1.23,<2", "gpu"),
    ),
    open=_open_ort,
    paths=_graphs,
    requirements=_compiler_runtime,
    modules=("onnxruntime", "onnx", "onnx_ir", "onnxscript"),
    gpu_providers=("CUDAExecutionProvider",),
    abilities=frozenset(
        {
            Ability.REWIND,
            Ability.SEVERAL_SEQUENCES,
            Ability.BESIDE,
            Ability.WITHOUT_DEVICE,
            Ability.THREADS,
            Ability.PROVIDERS,
            Ability.IN_PIECES,
            Ability.EXACT_COPY,
            Ability.DATA,
        }
    ),
)

MLC = RuntimeBackend(
    name="mlc",
    runtime_name="mlc",
    files="MLC library",
    distributions=(Distribution("apache-tvm", ">=0.27,<0.28", "mlc"),),
    open=_open_mlc,
    paths=_libraries,
    modules=("tvm", "tvm_ffi"),
    abilities=frozenset(
        {
            Ability.REWIND,
            Ability.SEVERAL_SEQUENCES,
            Ability.PLANNED_BATCH,
            Ability.WITHOUT_DEVICE,
            Ability.IN_PIECES,
        }
    ),
    threads_variable="TVM_NUM_THREADS",
)

TENSORRT = RuntimeBackend(
    name="tensorrt",
    runtime_name="trt",
    files="TensorRT engines",
    distributions=(Distribution("tensorrt-rtx", ">=1.7,<2", "tensorrt"),),
    open=_open_trt,
    paths=_engines,
    modules=("tensorrt_rtx", "tensorrt"),
    abilities=frozenset({Ability.REWIND, Ability.PLANNED_BATCH}),
)

BUILT_IN = (ONNX, MLC, TENSORRT)
