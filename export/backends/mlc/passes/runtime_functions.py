"""What the phone's runtime looks for in a library beside the model's own functions."""

from __future__ import annotations

from tvm import relax
from tvm.ir import IRModule

from export.compilation.module_pass import ModulePass, Part


class AddEmbeddingAllocator(ModulePass):
    """Adds ``alloc_embedding_tensor``, which returns a new tensor (rows, width) of ``dtype`` for a chunk of a prompt."""

    changes = frozenset({Part.NAMES})

    def __init__(self, rows: int, width: int, dtype: str) -> None:
        self.rows, self.width, self.dtype = rows, width, dtype

    def rewrite(self, mod: IRModule) -> IRModule:
        builder = relax.BlockBuilder(mod)
        with builder.function("alloc_embedding_tensor", []):
            shape = relax.ShapeExpr([self.rows, self.width])
            tensor = relax.op.builtin.alloc_tensor(shape, self.dtype, runtime_device_index=0)
            builder.emit_func_output(builder.emit(tensor))
        return builder.finalize()


class NameSystemLibrary(ModulePass):
    """Gives the library's symbols ``prefix``, under which a runtime finds it among those linked into an app."""

    changes = frozenset({Part.MODULE})

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def rewrite(self, mod: IRModule) -> IRModule:
        return mod.with_attr("system_lib_prefix", self.prefix)
