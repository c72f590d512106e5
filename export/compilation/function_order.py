"""Functions of a module in the order of their names, whatever addresses the compiler's objects had.

The virtual machine's code is written function by function as the module holds them, and a module holds them in the order in
which passes put them there, some of which walk through sets of objects by their addresses (seen in apache-tvm
0.27.0.post1). So the bytecode of one package came in another order in some runs, and with it the library's bytes.
"""

from __future__ import annotations

from tvm.ir import IRModule

from export.compilation.module_pass import ModulePass


class SortFunctions(ModulePass):
    """Puts all functions into the order of their names; changes nothing else."""

    changes = frozenset()

    def rewrite(self, mod: IRModule) -> IRModule:
        # `functions_items` gives them in this order; the module itself keeps that in which it was filled
        return IRModule(dict(mod.functions_items()), attrs=mod.attrs, global_infos=mod.global_infos)
