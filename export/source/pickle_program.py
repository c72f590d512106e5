"""Run a pickle as data: a small stack machine that builds numbers, strings and containers and calls only admitted names.

Python's own unpickler calls whatever a pickle names. This one never imports and never calls a global of the file's
choice: a global is looked up in a table given by the caller, and only entries of type `Admitted` can be called.
Opcodes are decoded by ``pickletools``, which executes nothing. Source of the opcodes: python/cpython,
Lib/pickletools.py; of the idea: pytorch/pytorch, torch/_weights_only_unpickler.py.
"""

from __future__ import annotations

import pickletools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from runtime_py.errors import CheckpointError
from runtime_py.files.json_file import shortened


@dataclass(frozen=True)
class Admitted:
    """A function of ours that a pickle may call under a published name."""

    name: str
    function: Callable[..., Any]


@dataclass(frozen=True)
class Call:
    """What such a function returns to have another one called in its place, within the same budget."""

    function: Any
    arguments: Any


MAX_STEPS = 1_000_000
"""Opcodes of one file, and items that its calls go through: some 30,000 tensors."""

MAX_MEMORY = 64_000_000
"""Bytes of everything that a file's pickles build."""

MAX_INTEGER_BITS = 128
"""The largest integer of a state dictionary is torch's magic number, of 77 bits; arithmetic with more can take for ever."""

CALL_BYTES = 400
"""What a call is charged beside its result: a tensor's record and the numbers in it."""


@dataclass
class Budget:
    """What the pickles of one file may still spend.

    Raises:
        ValueError: from its methods, when it is spent.
    """

    steps: int = field(default=MAX_STEPS)
    memory: int = field(default=MAX_MEMORY)

    def step(self, count: int = 1) -> None:
        """Go through ``count`` opcodes or items."""
        self.steps -= count
        if self.steps < 0:
            raise ValueError(f"more than {MAX_STEPS:,} steps")

    def hold(self, count: int) -> None:
        """Keep ``count`` more bytes."""
        self.memory -= count
        if self.memory < 0:
            raise ValueError(f"more than {MAX_MEMORY:,} bytes once it is built")


MAX_NAME = 200
"""Characters of a global's name that an error shows."""

STACK_BYTES, MEMO_BYTES = 8, 100
"""A place on the stack, and an entry of the memo with its key."""

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_INTEGERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
_TEXTS = {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_LITERALS = _INTEGERS | _TEXTS | {"FLOAT", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_REMEMBER = {"PUT", "BINPUT", "LONG_BINPUT"}
_RECALL = {"GET", "BINGET", "LONG_BINGET"}
_COUNTED = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "STACK_GLOBAL": 2, "REDUCE": 2, "POP": 1}
_COUNTED |= {"BUILD": 1, "BINPERSID": 1}
"""Opcodes that take a fixed number of values from the stack."""
_MARKED = {"TUPLE", "LIST", "DICT", "FROZENSET", "APPENDS", "SETITEMS", "ADDITEMS", "POP_MARK"}
"""Opcodes that take everything above the last mark."""
_CONTAINERS = (list, tuple, dict, set, frozenset)
_KEYS = (str, bytes, int, float, type(None))
"""Types that may be keys: hashing them is cheap, whatever a file nests."""

KEY_BITS = 60
"""Of an integer as key: larger ones can be chosen so that all have one hash, and a dictionary of them takes for ever."""


class PickleProgram:
    """One pickle's machine.

    Args:
        file: named in errors.
        admitted: ``"module name"`` to what stands for that global: an `Admitted`, or any inert value.
        persistent: makes a value of a persistent id (torch's storages).
        budget: shared by all pickles of a file; nothing is built beyond it.
    """

    def __init__(
        self, file: Path, admitted: Mapping[str, Any], persistent: Callable[[Any], Any], budget: Budget | None = None
    ) -> None:
        self._file, self._admitted, self._persistent = file, admitted, persistent
        self._budget = budget or Budget()
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: IO[bytes]) -> Any:
        """The pickle's value; the stream is left behind its last opcode.

        Raises:
            CheckpointError: a global that is not admitted, or a pickle that is damaged.
        """
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                self._budget.step()
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except (ValueError, TypeError, LookupError, EOFError, AttributeError, OverflowError, MemoryError) as error:
            raise CheckpointError(
                f"{self._file} holds a damaged pickle: {type(error).__name__}: {error}",
                "a pickle as torch.save writes it",
                "download the file again, and compare its sha256 with the published one",
            ) from error
        raise AssertionError("genops ends with STOP or raises")

    def _step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._push(_bounded(argument))
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._push(_EMPTY[name]())
        elif name in _REMEMBER or name == "MEMOIZE":
            self._budget.hold(MEMO_BYTES)
            self._memo[len(self._memo) if name == "MEMOIZE" else key(argument)] = self._stack[-1]
        elif name in _RECALL:
            self._stack.append(self._memo[argument])
        elif name == "DUP":
            self._stack.append(self._stack[-1])
        elif name == "MARK":
            self._budget.hold(sys.getsizeof([]))
            self._below.append(self._stack)
            self._stack = []
        elif name in ("GLOBAL", "INST"):
            self._global(argument)
            if name == "INST":
                raise ValueError("an instance made without a call")
        elif name in _COUNTED:
            self._take(name, [self._stack.pop() for _ in range(_COUNTED[name])][::-1])
        elif name in _MARKED:
            self._gather(name, self._marked())
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"opcode {name} ({shortened(argument)}), which no state dictionary needs")

    def _take(self, name: str, items: list[Any]) -> None:
        if name.startswith("TUPLE"):
            self._push(tuple(items))
        elif name in ("APPEND", "SETITEM"):
            self._extend(items)
        elif name == "STACK_GLOBAL":
            if not all(isinstance(item, str) for item in items):
                raise TypeError("a global whose name is no text")
            self._global(" ".join(items))
        elif name == "REDUCE":
            self._push(self._call(*items))
        elif name == "BINPERSID":
            self._budget.hold(CALL_BYTES)
            self._push(self._persistent(items[0]))
        elif name == "BUILD" and not isinstance(self._stack[-1], dict):
            raise ValueError("state given to an object that is no dictionary")

    def _gather(self, name: str, items: list[Any]) -> None:
        if name in ("APPENDS", "SETITEMS", "ADDITEMS"):
            self._extend(items)
        elif name == "DICT":
            self._push({})
            self._extend(items)
        elif name == "FROZENSET":
            self._push(frozenset(key(item) for item in items))
        elif name != "POP_MARK":
            self._push(tuple(items) if name == "TUPLE" else items)

    def _marked(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _push(self, value: Any) -> None:
        self._budget.hold(sys.getsizeof(value) + STACK_BYTES)
        self._stack.append(value)

    def _extend(self, items: list[Any]) -> None:
        into = self._stack[-1]
        before = sys.getsizeof(into)
        self._fill(into, items)
        self._budget.hold(sys.getsizeof(into) - before)

    def _fill(self, into: Any, items: list[Any]) -> None:
        if isinstance(into, list):
            into.extend(items)
        elif isinstance(into, set):
            into.update(key(item) for item in items)
        elif isinstance(into, dict):
            into.update(zip((key(item) for item in items[::2]), items[1::2], strict=True))
        else:
            raise TypeError(f"items for a {type(into).__name__}")

    def _global(self, name: str) -> None:
        if name not in self._admitted:
            shown = name.replace(" ", ".") if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}..."
            raise CheckpointError(
                f"{self._file} is a pickle that runs code: it asks for the Python object {shown}",
                "only the functions and types that rebuild tensors",
                "do not load this file; ask its publisher for safetensors, or convert it where you trust it",
            )
        self._stack.append(self._admitted[name])

    def _call(self, function: Any, arguments: Any) -> Any:
        while True:
            if not isinstance(function, Admitted) or not isinstance(arguments, tuple):
                raise TypeError("a call of something that is no admitted function")
            self._budget.hold(CALL_BYTES)
            self._budget.step(1 + sum(len(value) for value in arguments if isinstance(value, _CONTAINERS)))
            value = function.function(*arguments)
            if not isinstance(value, Call):
                return value
            function, arguments = value.function, value.arguments


def _bounded(literal: Any) -> Any:
    if isinstance(literal, int) and literal.bit_length() > MAX_INTEGER_BITS:
        raise ValueError(f"an integer of {literal.bit_length()} bits")
    return literal


def key(value: Any) -> Any:
    """A value that may be a key of a dictionary.

    Raises:
        TypeError, ValueError: it is not one whose hash is cheap and its own.
    """
    if not isinstance(value, _KEYS):
        raise TypeError(f"a {type(value).__name__} as key")
    if isinstance(value, int) and value.bit_length() > KEY_BITS:
        raise ValueError(f"an integer of {value.bit_length()} bits as key")
    return value
