"""What the compiler's own memory planning says a library takes beside its weights, without compiling any kernel."""

from __future__ import annotations

import tvm
from tvm.target import Target

from export.backends.mlc.compile_process import LibraryRequest
from export.backends.mlc.library import TARGETS, bounds_of, build_module
from export.backends.mlc.passes.attach_metadata import memory_usage
from export.backends.mlc.passes.pipeline import lowered, memory_planned


def planned_memory(request: LibraryRequest, place: str) -> dict[str, int]:
    """Bytes of planned buffers per function; buffers of unbounded symbolic size are not counted."""
    target = Target(TARGETS[place])
    module, _ = build_module(request, place)
    with target, tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": False}):
        planned = memory_planned()(lowered(bounds_of(request))(module))
    return memory_usage(planned)
