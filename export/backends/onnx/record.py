"""ONNX graphs, run by ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from export.backends.record import COLUMNS, VISION, Backend, BackendOption, Form
from export.quantisation.block_length import AUTO
from export.quantisation.grid_blockwise import BlockGrid, ScaleRule
from export.quantisation.grid_rotated import RotatedGrid
from export.quantisation.spec import Storage
from runtime_py.backends import records

if TYPE_CHECKING:
    from export.backends.base import ExportBackend

BLOCK_SIZES = (16, 32, 64, 128)
INT4_ONLY = ("int4",)
CALL_GRID, TOKEN_GRID, FINE_GRID = "ort_int8_row", "ort_int8_token", "ort_int8_token_14"
"""Rows that share one scale, in layers that round their input: with a scale a call (packages of before), or a token; or
a token and what that leaves over, 14 bits, where a choice says so (`export.backends.onnx.choices.rounds_finely`)."""

FINER = (
    Form("int8_14", Storage.INT8, FINE_GRID, 2, "inputs in 14 bits, two products of bytes"),
    Form("fp16", Storage.FP16, "", 4, "weights in float16, inputs and product in float32"),
)
"""What a layer of `TOKEN_GRID` may become. That a product in float32 takes as long as 4 of bytes is an estimate; it orders
layers, and decides nothing else."""

ROTATED_GRID = "ort_int8_rotated"
"""Rows that share one scale and are turned before they are rounded, in layers that turn and round their input."""

VISION_PRECISIONS = ("int8", "int8_weights", "fp16", "fp32")
PRESETS = ("plain", "mixed", "compact")
CACHE = "how keys and values are kept in ONNX graphs; float32 for GPUs whose shaders have no float16"
EMBEDDING, HEAD = "how the embedding is stored", "how the language head is stored"
WIDE = "mixed: some layers keep eight bits; compact: blocks of up to 128, for calibrated codes"


BYTES = "keys and values in bytes, whose scales a calibration with this flag holds: half the cache, faster long answers"
LIBRARY = "the decoder as machine code too, beside its graph: faster where apache-tvm is installed"
TOWER = "the vision tower as machine code too, beside its graph: faster on x86-64 with AVX-512 VNNI and without AMX"
TWICE = "a second decoder in the package, for prompts and for several sequences at a time, faster there"


def _exporter() -> ExportBackend:
    from export.backends.onnx.backend import OnnxBackend

    return OnnxBackend()


def _grids() -> tuple[BlockGrid, ...]:
    """Of MatMulNBits and GatherBlockQuantized, a size at a time, and of rows that share one scale.

    `CALL_GRID` is that of packages made before `TOKEN_GRID`, whose layers round their input with one scale a call.
    """
    rows = (CALL_GRID, TOKEN_GRID, FINE_GRID)
    grids = [BlockGrid(name, 8, 0, ScaleRule.POSITIVE, wide_scales=True) for name in rows]
    grids.append(RotatedGrid(ROTATED_GRID, 8, 0, ScaleRule.POSITIVE, wide_scales=True))
    for block in BLOCK_SIZES:
        grids += [
            BlockGrid(f"ort_int4_b{block}", 4, block, ScaleRule.SIGNED),
            BlockGrid(f"ort_int4_asym_b{block}", 4, block, ScaleRule.SPREAD),
            BlockGrid(f"ort_int8_b{block}", 8, block, ScaleRule.SIGNED),
            BlockGrid(f"ort_gather_int4_b{block}", 4, block, ScaleRule.SIGNED, half=True),
            BlockGrid(f"ort_gather_int8_b{block}", 8, block, ScaleRule.SIGNED, half=True),
        ]
    return tuple(grids)


BACKEND = Backend(
    runtime=records.ONNX,
    exporter=_exporter,
    tools=("torch", "onnx", "onnxscript", "onnxruntime"),
    grids=_grids(),
    wider={Storage.INT8: "ort_int8_b{block}", Storage.FP16: ""},
    finer={TOKEN_GRID: FINER},
    options=(
        BackendOption("vision_precision", "--vision-precision", VISION_PRECISIONS, VISION),
        BackendOption("cache", "--cache-dtype", ("float16", "float32"), CACHE, ("int4", "fp16")),
        BackendOption("block_size", "--block-size", (*BLOCK_SIZES, AUTO), COLUMNS),
        BackendOption("symmetric", "--asymmetric", (True, False), "int4 blocks with zero points of their own", INT4_ONLY),
        BackendOption("embed_precision", "--embed-precision", ("int8", "int4", "fp16", "fp32"), EMBEDDING, INT4_ONLY),
        BackendOption("head_precision", "--head-precision", ("int4", "int8", "fp16"), HEAD, INT4_ONLY),
        BackendOption("preset", "--preset", PRESETS, WIDE, INT4_ONLY),
        BackendOption("prefill_precision", "--prefill-precision", ("int8",), TWICE, INT4_ONLY, alone=True),
        BackendOption("decoder_library", "--decoder-library", (False, True), LIBRARY, INT4_ONLY, alone=True),
        BackendOption("vision_library", "--vision-library", (False, True), TOWER, INT4_ONLY, alone=True),
        BackendOption("cache_precision", "--cache-precision", ("int8",), BYTES, INT4_ONLY, alone=True),
    ),
)
