"""Which buffers share storage, as TVM decides it: `relax.transform.StaticPlanBlockMemory`, from sizes and lifetimes alone.

A buffer takes the smallest free storage of its dtype that holds it, at most sixteen times its size; otherwise the largest
smaller one, down to a sixteenth, which grows; otherwise a new one (apache/tvm,
src/relax/transform/static_plan_block_memory.cc, ``TokenAllocatorMixed::RequestReuse``).
"""

from __future__ import annotations

from dataclasses import dataclass

RANGE = 16
"""Sizes that are tried: up to so many times as large, down to so small a part."""


@dataclass(eq=False)
class Storage:
    """One allocation of the plan; ``nbytes`` is the size of the largest buffer that it held."""

    nbytes: int
    dtype: str


class StoragePlan:
    """Buffers are taken and given back in the order in which the program runs."""

    def __init__(self) -> None:
        self._all: list[Storage] = []
        self._free: list[Storage] = []

    @property
    def nbytes(self) -> int:
        """Of all storage."""
        return sum(storage.nbytes for storage in self._all)

    def take(self, nbytes: int, dtype: str) -> Storage:
        """Storage for a buffer whose inputs are still held."""
        free = [storage for storage in self._free if storage.dtype == dtype]
        holding = [storage for storage in free if nbytes <= storage.nbytes <= RANGE * nbytes]
        smaller = [storage for storage in free if nbytes // RANGE <= storage.nbytes < nbytes]
        if not holding and not smaller:
            made = Storage(nbytes, dtype)
            self._all.append(made)
            return made
        chosen = min(holding, key=lambda storage: storage.nbytes) if holding else max(smaller, key=lambda one: one.nbytes)
        self._free.remove(chosen)
        chosen.nbytes = max(chosen.nbytes, nbytes)
        return chosen

    def give(self, *storages: Storage) -> None:
        """Buffers that nothing reads any more."""
        self._free += storages
