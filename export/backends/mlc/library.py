"""Compile a model's Relax module: one library for a phone (a tar of two objects) and one for this machine.

Every form comes from the same specs, so what runs here is what the phone runs minus the device code. A library is loaded by
the TVM that built it and by those that mlc-llm pins (`passes.cache_arguments`). Targets: mlc-ai/mlc-llm,
python/mlc_llm/support/auto_target.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.target import Target

from export.backends.mlc.attention_merge import SafeMerge
from export.backends.mlc.block_outputs import BlockOutputs
from export.backends.mlc.compile_process import LibraryRequest
from export.backends.mlc.function_list import block_functions, functions
from export.backends.mlc.logit_kernels import AddLogitKernels
from export.backends.mlc.model import ModelLibrary
from export.backends.mlc.passes.cache_arguments import CreateCacheWithFiveNumbers
from export.backends.mlc.passes.cpu_schedule import SetAside
from export.backends.mlc.passes.pipeline import pipeline
from export.backends.mlc.passes.runtime_functions import AddEmbeddingAllocator, NameSystemLibrary
from export.backends.mlc.processor_append import AppendOnProcessor
from export.backends.mlc.processor_attention import AttendOnProcessor
from export.backends.mlc.processor_rotation import RotateOnProcessor
from export.backends.mlc.support import unsupported
from export.compilation.module_pass import ModulePass, PassLog
from export.compilation.objects import write_objects
from export.compilation.size_order import sizes_in_order
from export.processor.targets import TARGETS as PROCESSORS
from runtime_py.errors import UnsupportedModelError

METAL_LIMITS = {"max_threads_per_block": 256, "max_shared_memory_per_block": 32768, "thread_warp_size": 1}
ANDROID_HOST = {"kind": "llvm", "mtriple": "aarch64-linux-android"}
IOS_HOST = {"kind": "llvm", "mtriple": "arm64-apple-ios"}

ARM64 = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+dotprod"]}

TARGETS: dict[str, dict[str, Any]] = {
    "android": {"kind": "opencl", "host": ANDROID_HOST},
    "ios": {"kind": "metal", **METAL_LIMITS, "libs": ["iphoneos"], "host": IOS_HOST},
    # AVX2 and FMA; without a name LLVM takes SSE2
    "x86_64": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"},
    # sdot and udot, which arm64 servers and computers have since Armv8.2
    "aarch64": ARM64,
    "aarch64_app": ARM64,
    "pocl": {"kind": "opencl", "host": {"kind": "llvm", "mtriple": "x86_64-linux-gnu"}},
}
"""Places to build for; ``aarch64_app`` and ``pocl`` are rungs of the ladder in parity_tests/laboratory/mlc_ladder."""

SCHEDULES: dict[str, dict[str, Any]] = {
    "ios": {"kind": "opencl", **METAL_LIMITS, "host": IOS_HOST},
    "pocl": TARGETS["android"],
}
"""Targets whose kernels are scheduled as if for another: TVM's Matmul rule crashes under metal with a symbolic length
(apache-tvm 0.27.0.post1), and the PoCL rung must run the kernels that Android gets."""

OPTIONS = {"tirx.disable_cse_tir": True, "relax.backend.use_cuda_graph": False}
"""As mlc_llm compiles: TVM's merging of common subexpressions has a regression; CUDA graphs are for another device."""

SYSTEM_LIBRARY = ("android", "ios", "aarch64_app")
"""Libraries that are linked into the program that uses them, as an app's; the aarch64_app rung is loaded as on a phone."""


def system_prefix(name: str) -> str:
    """The symbol prefix of a system library."""
    return name.replace("-", "_") + "_"


def build_module(request: LibraryRequest, place: str) -> tuple[tvm.ir.IRModule, dict[str, Any]]:
    """The Relax module with all functions but ``_metadata``, and the metadata without ``memory_usage``.

    Raises:
        UnsupportedModelError: a head size whose device kernels are known to be wrong.
    """
    spec, target = request.spec, Target(TARGETS[place])
    reasons = unsupported(spec, device=target.kind.name != "llvm")
    if reasons:
        raise UnsupportedModelError(
            f"no {place} library: " + "; ".join(reasons), "a supported model", "build for cpu instead"
        )
    model = ModelLibrary(spec, request.assignments, request.scheme.model_dtype, request.overview, target, request.limits)
    blocks = BlockOutputs(model) if request.blocks else None
    with target:
        module, named = model.export_tvm(
            spec=functions(model) if blocks is None else block_functions(model, blocks, request.blocks)
        )
    _check_parameters(request, named)
    for completed in completing_passes(request, place):
        module = completed(module)
    facts = metadata(request, [(name, parameter) for name, parameter in named])
    return module, facts if blocks is None else {**facts, "blocks": blocks.names}


def completing_passes(request: LibraryRequest, place: str) -> list[ModulePass]:
    """What is done to the exported module before it is compiled, in order."""
    device, limits, dtype = TARGETS[place]["kind"] != "llvm", request.limits, request.scheme.model_dtype
    passes: list[ModulePass] = [CreateCacheWithFiveNumbers("create_tir_paged_kv_cache")]
    decoder = request.spec.decoder
    own = AppendOnProcessor, AttendOnProcessor, RotateOnProcessor
    passes += [SafeMerge(dtype)] if device else [each(decoder, dtype) for each in own]
    passes += [AddLogitKernels(device), AddEmbeddingAllocator(limits.prefill_chunk, request.spec.decoder.hidden, dtype)]
    if place in SYSTEM_LIBRARY:
        passes.append(NameSystemLibrary(system_prefix(request.name)))
    return passes


def _check_parameters(request: LibraryRequest, named: list[tuple[str, Any]]) -> None:
    declared = {name: (tuple(int(size) for size in p.shape), str(p.dtype)) for name, p in named}
    stored = {p.name: (p.shape, p.dtype) for p in request.parameters}
    if declared != stored:
        wrong = sorted({name for name, _ in set(declared.items()) ^ set(stored.items())})
        raise AssertionError(f"library and weight directory disagree on {wrong}")


def metadata(request: LibraryRequest, named: list[tuple[str, Any]]) -> dict[str, Any]:
    """What ``_metadata`` returns, before memory_usage; keys in upstream's order."""
    decoder, limits = request.spec.decoder, request.limits
    return {
        "model_type": request.model_type,
        "quantization": request.scheme.name,
        "context_window_size": limits.context,
        "sliding_window_size": -1,
        "attention_sink_size": -1,
        "prefill_chunk_size": limits.prefill_chunk,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "disaggregation": False,
        "kv_state_kind": "kv_cache",
        "max_batch_size": limits.batch,
        "active_vocab_size": None,
        "model_task": "chat",
        "params": [
            {
                "name": name,
                "shape": [int(size) for size in parameter.shape],
                "dtype": str(parameter.dtype),
                "preprocs": [],
                "pipeline_stages": [0],
            }
            for name, parameter in named
        ],
        "kv_cache": {
            "num_hidden_layers": decoder.layers,
            "num_attention_heads": decoder.heads,
            "num_key_value_heads": decoder.kv_heads,
            "head_dim": decoder.head_dim,
        },
    }


def bounds_of(request: LibraryRequest) -> dict[str, int]:
    """Largest value of each symbolic size that has one."""
    limits = request.limits
    return {"seq_len": limits.prefill_chunk, "batch_size": limits.batch, "total_seq_len": limits.context}


@sizes_in_order()
def compile_library(
    request: LibraryRequest, place: str, out: Path, kernels: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """Build for ``place`` and write ``out`` (a .tar for phones, a shared library for this machine).

    Args:
        kernels: shared libraries to write, by the variant (export.processor.targets.TARGETS) for whose instructions the
            products of ``out`` are compiled once more, under their names.

    Returns:
        the metadata that the library's ``_metadata`` returns.
    """
    module, values = build_module(request, place)
    target = Target(TARGETS[place])
    schedule = Target(SCHEDULES.get(place, TARGETS[place]))
    options = dict(OPTIONS)
    if place == "pocl":
        # a kernel asserts the device type of its tensors, and PoCL's lie in the processor's memory
        options["tirx.disable_assert"] = True
    log, aside = PassLog(), SetAside()
    with target, tvm.transform.PassContext(config=options, instruments=[log]), log.explained():
        built = relax.build(
            module,
            target=target,
            relax_pipeline=pipeline(target, schedule, bounds_of(request), values, [aside.as_tvm()]),
            system_lib=place in SYSTEM_LIBRARY,
        )
    write_objects(built, out)
    for variant, path in (kernels or {}).items():
        write_kernels(aside, Target(PROCESSORS[variant]), path)
    return values


def write_kernels(aside: SetAside, target: Target, out: Path) -> None:
    """The products that were set aside as a shared library of their own, by the instructions of ``target``."""
    module = tirx.transform.ForceNarrowIndexToInt32()(aside.scheduled(target))
    with target, tvm.transform.PassContext(config=OPTIONS):
        write_objects(tvm.compile(module, target=target), out)
