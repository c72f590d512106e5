"""The loops of a scheduled kernel, read out: which buffers it reads and writes at which indices, and its arithmetic.

One `Launch` is what a device starts at once: the outermost loops that are bound to blocks and threads, and all within.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm import tirx

from parity_tests.laboratory.mlc_traffic.index_values import OPERATORS, Index, Loop, looked_up, loops_of, value_of

OPERANDS = ("a", "b", "value", "condition", "true_value", "false_value", "body")
"""Where an expression keeps what it works on, beside ``args`` and ``indices``."""

ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Max", "Min")
CHOICE = "tirx.if_then_else"
FREE_CALLS = ("tirx.reinterpret", "tirx.likely")
"""Calls on floats that compute nothing."""


@dataclass(frozen=True)
class Access:
    """One load or store of memory that all blocks of threads share.

    Attributes:
        shape: of the buffer, symbolic sizes filled in; None where a size is not known.
        index: one expression an axis, in which names are replaced by what they stand for.
    """

    buffer: str
    item: int
    shape: tuple[int | None, ...]
    index: tuple[Index, ...]
    stores: bool


@dataclass
class Launch:
    """One start of a device's kernel.

    Attributes:
        blocks: how many blocks of threads.
        threads: threads of one block.
        flops: floating-point operations, a multiplication with its addition counted as two.
    """

    blocks: int = 1
    threads: int = 1
    flops: int = 0
    accesses: list[Access] = field(default_factory=list)


class LaunchReader:
    """Walks one kernel.

    Args:
        sizes: value of each symbolic size by its name; also of each local counter that bounds a loop.

    Attributes:
        counted: whether every loop's length is known; not in a kernel that loops while a condition in memory holds.
    """

    launches: list[Launch]
    arguments: set[str]
    counted: bool

    def __init__(self, kernel: tirx.PrimFunc, sizes: Mapping[str, int]) -> None:
        self.launches = []
        self.counted = True
        self._sizes = sizes
        self._names: dict[Any, Index] = {}
        self._loops: list[Loop] = []
        self._launch: Launch | None = None
        self._bound: dict[str, int] = {}
        self._buffers: dict[Any, str] = {}
        self._joined, self._summed = False, None
        self.arguments = {self._name(buffer) for buffer in _buffers(kernel)}
        self._walk(kernel.body)

    # statements

    def _walk(self, at: Any) -> None:
        kind = type(at).__name__
        getattr(self, f"_walk_{kind.lower()}")(at)

    def _walk_seqstmt(self, at: tirx.SeqStmt) -> None:
        for part in at.seq:
            self._walk(part)

    def _walk_for(self, at: tirx.For) -> None:
        loop = Loop(at.loop_var, self._number(at.extent), _thread(at))
        outermost = bool(loop.thread) and self._launch is None
        if outermost:
            self._launch = Launch()
            self._bound = {}
            self.launches.append(self._launch)
        if loop.thread and self._launch is not None and loop.thread not in self._bound:
            # parts of one launch bind the same threads again
            self._bound[loop.thread] = loop.extent
            if loop.thread.startswith("blockIdx"):
                self._launch.blocks *= loop.extent
            elif loop.thread.startswith("threadIdx"):
                self._launch.threads *= loop.extent
        self._loops.append(loop)
        self._names[at.loop_var] = loop
        self._walk(at.body)
        self._loops.pop()
        if outermost:
            self._launch = None

    def _walk_while(self, at: tirx.While) -> None:
        self.counted = False
        self._walk(at.body)

    def _walk_sblockrealize(self, at: Any) -> None:
        joined = False
        for variable, bound in zip(at.block.iter_vars, at.iter_values, strict=True):
            self._names[variable.var] = index = self._index(bound)
            threads = any(loop.thread for loop in loops_of(index))
            joined |= int(variable.iter_type) == tirx.IterVar.CommReduce and threads
        if at.block.init is not None and not any(loop.extent > 1 and not loop.thread for loop in self._loops):
            self._walk(at.block.init)
        outer, self._joined = self._joined, joined
        self._walk(at.block.body)
        self._joined = outer

    def _walk_allocbuffer(self, at: tirx.AllocBuffer) -> None:
        pass

    def _walk_attrstmt(self, at: tirx.AttrStmt) -> None:
        self._walk(at.body)

    def _walk_bind(self, at: Any) -> None:
        self._read(at.value)
        self._name_index(at)

    def _name_index(self, at: Any) -> None:
        """Remembers what a name stands for, where an index can hold it; numbers of other kinds never become indices."""
        try:
            self._names[at.var] = self._index(at.value)
        except KeyError:
            self._names.pop(at.var, None)

    def _walk_ifthenelse(self, at: tirx.IfThenElse) -> None:
        self._read(at.condition)
        # the other branch of what is asked once for every thread fills up with zeros
        self._walk(at.then_case)

    def _walk_evaluate(self, at: tirx.Evaluate) -> None:
        self._read(at.value)

    def _walk_assertstmt(self, at: tirx.AssertStmt) -> None:
        pass

    def _walk_bufferstore(self, at: tirx.BufferStore) -> None:
        self._access(at.buffer, at.indices, stores=True)
        # a sum over threads is written as one to memory, and becomes an exchange among them and one store
        self._summed = at.buffer if self._joined else None
        self._read(at.value)
        self._summed = None

    # expressions

    def _read(self, at: Any) -> None:
        """Counts the loads and the arithmetic of an expression."""
        kind = type(at).__name__
        if kind == "TensorLoad":
            self._access(at.source, at.indices, stores=False)
            for index in at.indices:
                self._read(index)
            return
        if kind == "Call" and str(getattr(at.op, "name", "")) == CHOICE:
            self._read_choice(at)
            return
        if kind == "Let":
            self._name_index(at)
        call = kind == "Call" and str(getattr(at.op, "name", "")) not in FREE_CALLS
        if (kind in ARITHMETIC or call) and str(at.ty).strip('"').find("float") >= 0:
            assert self._launch is not None
            self._launch.flops += math.prod(loop.extent for loop in self._loops)
        for name in OPERANDS:
            operand = getattr(at, name, None)
            if isinstance(operand, tvm.ir.Expr):
                self._read(operand)
        if kind == "Call":
            for operand in at.args:
                self._read(operand)

    def _read_choice(self, at: Any) -> None:
        """The branch that is taken, where that is the same for every thread; else both."""
        condition, *branches = at.args
        self._read(condition)
        try:
            index = self._index(condition)
        except KeyError:
            index = ("Looked up", 0, 1)
        if not loops_of(index) and not looked_up(index):
            branches = [branches[0 if value_of(index, {}) else 1]]
        for branch in branches:
            self._read(branch)

    def _access(self, source: Any, indices: Any, stores: bool) -> None:
        if source.scope() not in ("", "global") or self._launch is None:
            return
        if not stores and self._summed is not None and source.same_as(self._summed):
            return
        shape = tuple(self._size(size) for size in source.shape)
        item = tvm.DataType(str(source.dtype)).bits // 8
        index = tuple(self._index(index) for index in indices)
        self._launch.accesses.append(Access(self._name(source), item, shape, index, stores))

    def _name(self, buffer: Any) -> str:
        """The buffer's name, told apart from another of the same name."""
        if buffer not in self._buffers:
            alike = sum(str(other.name) == str(buffer.name) for other in self._buffers)
            self._buffers[buffer] = str(buffer.name) + (f".{alike}" if alike else "")
        return self._buffers[buffer]

    def _size(self, size: Any) -> int | None:
        try:
            return self._number(size)
        except KeyError:
            return None

    def _number(self, size: Any) -> int:
        return int(value_of(self._index(size), {}))

    def _index(self, at: Any) -> Index:
        """An expression over loops and numbers.

        Raises:
            KeyError: it holds something that no index is made of.
        """
        return getattr(self, f"_index_{type(at).__name__.lower()}", self._index_operator)(at)

    def _index_intimm(self, at: tirx.IntImm) -> Index:
        return int(at.value)

    def _index_var(self, at: tirx.Var) -> Index:
        return self._names[at] if at in self._names else self._sizes[str(at.name)]

    def _index_cast(self, at: tirx.Cast) -> Index:
        return self._index(at.value)

    def _index_let(self, at: tirx.Let) -> Index:
        self._names[at.var] = self._index(at.value)
        return self._index(at.body)

    def _index_select(self, at: tirx.Select) -> Index:
        return ("Select", self._index(at.condition), self._index(at.true_value), self._index(at.false_value))

    def _index_call(self, at: Any) -> Index:
        if str(at.op.name) != CHOICE:
            raise KeyError(f"{at.op.name} in an index")
        return ("Select", *(self._index(part) for part in at.args))

    def _index_operator(self, at: Any) -> Index:
        kind = type(at).__name__
        if kind not in OPERATORS:
            raise KeyError(f"{kind} in an index")
        return (kind, *(self._index(getattr(at, name)) for name in ("a", "b") if hasattr(at, name)))

    def _index_tensorload(self, at: Any) -> Index:
        """A number read from memory: a counter by its name, else one that differs with the place that it is read from."""
        name = str(at.source.name)
        if name in self._sizes:
            return self._sizes[name]
        place: Index = 0
        lengths = [self._size(size) for size in at.source.shape]
        for size, index in zip(at.source.shape, at.indices, strict=True):
            length = self._size(size)
            place = ("Add", ("Mul", place, 1 if length is None else length), self._index(index))
        known = [length for length in lengths if length is not None]
        return ("Looked up", place, math.prod(known) if len(known) == len(lengths) else sys.maxsize)


def _buffers(kernel: tirx.PrimFunc) -> list[Any]:
    """The buffers that a kernel is called with."""
    return [parameter for parameter in kernel.params if isinstance(parameter.ty, tirx.BufferType)]


def _thread(at: tirx.For) -> str:
    return "" if at.thread_binding is None else str(at.thread_binding.thread_tag)
