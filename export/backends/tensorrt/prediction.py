"""Sizes and peaks of engines from shapes alone, by a fit to measured builds (docs/targets/desktop-gpu.md has the table)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from export.backends.base import BuildOptions, Prediction
from export.backends.tensorrt.on_the_server import served as served_by_rtx
from export.backends.tensorrt.profiles import stage_profiles
from export.backends.tensorrt.storages import float_dtype
from export.plan.machine import available_memory
from export.quantisation.spec import Assignment
from export.specs import ModelSpec
from export.stages import contracts
from runtime_py.contracts import CONNECTOR, DECODER, STAGES, VISION

PARENT = 900_000_000
"""Resident bytes of the exporting process while an engine is built: torch, onnx, onnxscript and what a trace leaves."""

BASE = 280_000_000
"""Resident bytes of a build whose engine has next to no weights: TensorRT and its parser."""

PER_FLOAT_BYTE = 2.1
PER_INT4_BYTE = 3.1
"""Resident bytes per byte of weights: the parser's view of the file, the builder's copy, the packed result."""

PER_LARGEST_CODE = 2.4
"""Resident bytes per value of the largest int4 matrix, which is unpacked as a whole."""

PER_SPLIT_BYTE = 1.0
"""Resident bytes per byte of float matrices whose product is split (q | k | v, gate | up): the builder cuts a copy."""

PER_LARGEST_FLOAT_BYTE = 0.76
"""Resident bytes per byte of the largest float matrix that is multiplied with."""

SPLIT_LAYERS = ("attention.qkv", "mlp.gate_up")
"""Decoder layers whose product is split."""

PER_BLOCK = 3_000_000
"""Resident bytes per block and profile: the compiler's own graphs."""

ENGINE_BASE = 6_000_000
DEVICE_RUNTIME = 450_000_000
"""Device bytes of the CUDA context, TensorRT and compiled kernels."""


@dataclass(frozen=True)
class StageBytes:
    """Weights of an engine by how the builder treats them.

    Attributes:
        floats: bytes of float weights.
        int4: bytes of packed codes and their scales.
        split_floats: bytes of float matrices whose product is split.
        largest_codes: values in the largest int4 matrix.
        largest_floats: bytes of the largest float matrix of a linear layer.
        blocks: transformer blocks times profiles.
    """

    floats: int
    int4: int
    split_floats: int
    largest_codes: int
    largest_floats: int
    blocks: int

    @property
    def weights(self) -> int:
        return self.floats + self.int4


def predict(spec: ModelSpec, options: BuildOptions, assignments: Mapping[str, Assignment]) -> Prediction:
    """Bytes of an engine package by file, on the GPU by part, and the peak of exporter and engine builder together."""
    sizes = {stage: stage_bytes(spec, stage, options, assignments) for stage in STAGES}
    peaks = {stage: engine_peak(size) for stage, size in sizes.items()}
    served = options.target.server is not None
    if served and not built_here(spec, options, assignments, available_memory()):
        peaks = dict.fromkeys(STAGES, 0)  # graphs alone are written, some rows at a time
    highest = max(peaks, key=lambda stage: peaks[stage])
    device = {
        "weights": sum(size.weights for size in sizes.values()),
        "kv_cache": cache_bytes(spec, options),
        "activations": activation_bytes(spec, options),
        "runtime": DEVICE_RUNTIME,
    }
    files = {stage: (2 if served else 1) * size.weights + ENGINE_BASE for stage, size in sizes.items()}
    return Prediction(files, device, PARENT + peaks[highest], f"tensorrt {highest}")


def built_here(spec: ModelSpec, options: BuildOptions, assignments: Mapping[str, Assignment], available: int) -> bool:
    """Whether the export builds a server's engines: they serve the device that was named, and every build fits."""
    capability = options.compute_capability
    return (not capability or served_by_rtx(capability)) and not unbuilt(spec, options, assignments, available)


def unbuilt(spec: ModelSpec, options: BuildOptions, assignments: Mapping[str, Assignment], available: int) -> dict[str, int]:
    """Stages whose engine takes more memory to build than ``available``, with what it takes; both in bytes."""
    peaks = {stage: engine_peak(stage_bytes(spec, stage, options, assignments)) for stage in STAGES}
    return {stage: peak for stage, peak in peaks.items() if PARENT + peak > available}


def engine_peak(size: StageBytes) -> int:
    """Highest resident bytes of the process that builds an engine."""
    weights = PER_FLOAT_BYTE * size.floats + PER_SPLIT_BYTE * size.split_floats + PER_INT4_BYTE * size.int4
    largest = PER_LARGEST_CODE * size.largest_codes + PER_LARGEST_FLOAT_BYTE * size.largest_floats
    return int(BASE + weights + largest + PER_BLOCK * size.blocks)


def stage_bytes(spec: ModelSpec, stage: str, options: BuildOptions, assignments: Mapping[str, Assignment]) -> StageBytes:
    """Weights of a stage as they are written for TensorRT."""
    from export.backends.tensorrt.kernels import Int4Linear, TrtKernels
    from export.modules.build import stored_modules
    from export.modules.kernels import Linear

    limits = options.limits
    modules = dict(stored_modules(spec, stage, TrtKernels(assignments, limits.context, limits.batch)))
    layers = [layer for layer in modules.values() if isinstance(layer, Int4Linear)]
    packed = [(layer.weight_codes.numel(), 2 * layer.weight_scales.numel()) for layer in layers]
    others = sum(p.numel() for module in modules.values() for p in module.parameters()) - sum(
        codes + scales // 2 for codes, scales in packed
    )
    item = 4 if float_dtype(options) == "float32" else 2
    floats = {name: layer.weight.numel() for name, layer in modules.items() if isinstance(layer, Linear)}
    split = sum(count for name, count in floats.items() if stage == DECODER and name.endswith(SPLIT_LAYERS))
    towers = 1 if spec.vision.structure.grid else 3
    decoders = len(stage_profiles(spec, DECODER, contracts(spec)[DECODER], options.limits, options.precision == "int4"))
    blocks = {VISION: spec.vision.layers * towers, DECODER: spec.decoder.layers * decoders, CONNECTOR: 1}
    return StageBytes(
        floats=item * others,
        int4=sum(codes + scales for codes, scales in packed),
        split_floats=item * split,
        largest_codes=2 * max((codes for codes, _ in packed), default=0),
        largest_floats=item * max(floats.values(), default=0),
        blocks=blocks.get(stage, 0),
    )


def cache_bytes(spec: ModelSpec, options: BuildOptions) -> int:
    """The caches of all sequences on the device; they are allocated whole."""
    decoder, limits = spec.decoder, options.limits
    item = 4 if float_dtype(options) == "float32" else 2
    return 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * limits.context * limits.batch * item


def activation_bytes(spec: ModelSpec, options: BuildOptions) -> int:
    """The larger of a call of the decoder and one picture in the vision encoder; stages share the memory.

    A call has one prompt chunk, or a token of each sequence.
    """
    decoder, vision = spec.decoder, spec.vision
    item = 4 if float_dtype(options) == "float32" else 2
    tokens = max(options.limits.prefill_chunk, options.limits.batch)
    widths = (decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim + 2 * decoder.mlp_width + 4 * decoder.hidden
    prompt = tokens * widths * item + tokens * options.limits.context
    logits = tokens * decoder.vocabulary * (item + 4)
    patches = vision.structure.patches or 4096
    picture = patches * (2 * vision.mlp_width + 4 * vision.width) * item
    return max(prompt + logits, picture)
