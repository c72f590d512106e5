"""TensorRT engines, for NVIDIA GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from export.backends.record import COLUMNS, Backend, BackendOption
from export.quantisation.block_length import AUTO
from export.quantisation.grid_blockwise import BlockGrid, ScaleRule
from export.quantisation.spec import Storage
from runtime_py.backends import records

if TYPE_CHECKING:
    from export.backends.base import ExportBackend

BLOCK_SIZES = (32, 64, 128)

BUILDER = ("__init__", "engine_process", "engine_run", "flavour", "network", "on_the_server")
"""Modules that build an engine from a kept graph; they import nothing else of the export."""


def _exporter() -> ExportBackend:
    from export.backends.tensorrt.backend import TensorrtBackend

    return TensorrtBackend()


BACKEND = Backend(
    runtime=records.TENSORRT,
    exporter=_exporter,
    tools=("torch", "onnx", "onnxscript", "tensorrt", "tensorrt-rtx"),
    grids=tuple(BlockGrid(f"trt_int4_b{block}", 4, block, ScaleRule.POSITIVE, half=True) for block in BLOCK_SIZES),
    wider={Storage.FP16: ""},
    options=(BackendOption("block_size", "--block-size", (*BLOCK_SIZES, AUTO), COLUMNS),),
    server_builder="export.backends.tensorrt.on_the_server",
    server_modules=(
        "export/__init__.py",
        "export/backends/__init__.py",
        *(f"export/backends/tensorrt/{name}.py" for name in BUILDER),
    ),
)
