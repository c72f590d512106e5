"""What one call of a library's function moves and computes, kernel by kernel, set against what it needs at least."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import tvm
from tvm import relax, tirx

from parity_tests.laboratory.mlc_traffic.launches import LaunchReader
from parity_tests.laboratory.mlc_traffic.traffic import traffic

ATTENTION = "vm.builtin.attention_kv_cache_attention_with_fused_qkv"
CACHE_KERNELS = ("fused_rope", "tir_kv_cache_transpose_append")
"""What the cache runs before attention: rotation, and the new keys and values into their pages."""

PAGES = "pages"


@dataclass(frozen=True)
class KernelTraffic:
    """One kernel of a function. Bytes and operations are of one call.

    Attributes:
        calls: how often the function calls it.
        launches: what a device starts for one call.
        least: weights once and activations once; nothing for a kernel that copies what it is given.
        moved: the same and what it keeps in memory for itself, each distinct byte once.
        asked: what its blocks of threads ask for, each keeping nothing for another.
        counted: whether ``asked`` and ``flops`` are known: not where a kernel loops while a condition in memory holds.
    """

    name: str
    calls: int
    launches: int
    least: int
    moved: int
    asked: int
    flops: int
    counted: bool = True

    @property
    def ratio(self) -> float:
        """Bytes moved over the least; infinite for a copy."""
        return self.moved / self.least if self.least else float("inf")

    @property
    def asked_ratio(self) -> float:
        return self.asked / self.least if self.least else float("inf")


def function_traffic(module: tvm.ir.IRModule, function: str, sizes: Mapping[str, int]) -> list[KernelTraffic]:
    """The kernels of a function in the order of their first calls.

    Args:
        sizes: value of every symbolic size by name: ``seq_len``, ``batch_size``, ``kv_chunk_len``, ...
    """
    calls: Counter[str] = Counter()
    weighted: dict[str, int] = {}
    for kernel, weights in called(module[function]):
        for name in cache_kernels(module, sizes["seq_len"]) if kernel == ATTENTION else (kernel,):
            calls[name] += 1
            weighted[name] = weights
    return [kernel_traffic(name, module[name], count, weighted[name], sizes) for name, count in calls.items()]


def cache_kernels(module: tvm.ir.IRModule, tokens: int) -> list[str]:
    """The kernels that the cache runs in place of an attention call."""
    attention = "batch_decode_paged_kv" if tokens == 1 else "batch_prefill_ragged_kv"
    known = {variable.name_hint for variable in module.get_global_vars()}
    return [name for name in (*CACHE_KERNELS, attention) if name in known]


def called(function: relax.Function) -> Iterator[tuple[str, int]]:
    """Names of the kernels that a function calls, in order, each with how many of its arguments are weights."""
    weights: set[relax.Var] = set()
    for block in function.body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.TupleGetItem):
                weights.add(binding.var)
            elif isinstance(value, relax.Call) and value.op == tvm.ir.Op.get("relax.call_tir"):
                yield value.args[0].name_hint, sum(argument in weights for argument in value.args[1].fields)
            elif isinstance(value, relax.Call) and value.op == tvm.ir.Op.get("relax.call_dps_packed"):
                yield str(value.args[0].global_symbol), 0


def kernel_traffic(name: str, kernel: tirx.PrimFunc, calls: int, weights: int, sizes: Mapping[str, int]) -> KernelTraffic:
    """One kernel, its launches together."""
    reader = LaunchReader(kernel, sizes)
    least, moved, asked, flops = 0, 0, 0, 0
    for launch in reader.launches:
        bytes_of = traffic(launch)
        through = {**bytes_of.read}
        for buffer, count in bytes_of.written.items():
            through[buffer] = through.get(buffer, 0) + count
        moved += sum(through.values())
        least += sum(count for buffer, count in through.items() if buffer in reader.arguments)
        asked += bytes_of.asked
        flops += launch.flops
    copies = not flops and not weights and PAGES not in reader.arguments
    return KernelTraffic(name, calls, len(reader.launches), 0 if copies else least, moved, asked, flops, reader.counted)
