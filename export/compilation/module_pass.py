"""A pass over a Relax module that says what it may change, and is held to it.

TVM's passes (tvm/ir/transform.py) take a module and return one, and name the passes they need; what they change is not
said anywhere. A pass of our own names the parts that it changes. It works on a copy: the module it was given stays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, ClassVar

import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import IRModule
from tvm.ir.instrument import pass_instrument


class Part(StrEnum):
    """What a pass may change."""

    FUNCTIONS = "bodies of Relax functions"
    KERNELS = "kernels"
    ANNOTATIONS = "attributes of Relax functions"
    NAMES = "which functions there are"
    MODULE = "attributes of the module"


class ModulePass(ABC):
    """A pass that returns a changed copy of a module. A subclass sets ``changes`` and writes `rewrite`."""

    changes: ClassVar[frozenset[Part]]

    @abstractmethod
    def rewrite(self, mod: IRModule) -> IRModule:
        """The module changed; ``mod`` is a copy of the one given, so it may be changed in place and returned."""

    def requires(self, mod: IRModule) -> None:  # noqa: B027  (most passes take any module)
        """Raise AssertionError when ``mod`` is not what this pass works on."""

    def __call__(self, mod: IRModule) -> IRModule:
        """The changed module.

        Raises:
            AssertionError: a part that the pass does not declare has changed, or the module is not what it works on.
        """
        self.requires(mod)
        after = self.rewrite(mod.clone())
        undeclared = [part for part in changed(mod, after) if part not in self.changes]
        if undeclared:
            declared = ", ".join(sorted(self.changes)) or "nothing"
            raise AssertionError(
                f"{type(self).__name__} says that it changes {declared}; it changed {', '.join(undeclared)}"
            )
        return after

    def as_tvm(self) -> tvm.transform.Pass:
        """This pass for a list of TVM's own."""

        def run(mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
            return self(mod)

        return tvm.transform.module_pass(run, opt_level=0, name=type(self).__name__)


def require_kernels(mod: IRModule, expected: Mapping[str, int]) -> None:
    """Raise AssertionError unless the module has kernels of these names and so many arguments, as another TVM may not."""
    found = {variable.name_hint: len(mod[variable].params) for variable in mod.get_global_vars()}
    if any(found.get(name) != count for name, count in expected.items()):
        raise AssertionError(f"expected kernels with so many arguments: {dict(expected)}, found {sorted(found.items())}")


def changed(before: IRModule, after: IRModule) -> list[Part]:
    """The parts in which two modules differ; parts that are one object are equal, others may be or not."""
    old, new = ({variable.name_hint: f for variable, f in mod.functions_items()} for mod in (before, after))
    parts = set()
    if old.keys() != new.keys():
        parts.add(Part.NAMES)
    for name in old.keys() & new.keys():
        if old[name].same_as(new[name]):
            continue
        if not isinstance(old[name], relax.Function):
            parts.add(Part.KERNELS)
            continue
        same_body = isinstance(new[name], relax.Function) and old[name].body.same_as(new[name].body)
        parts.add(Part.ANNOTATIONS if same_body else Part.FUNCTIONS)
    if not tvm_ffi.structural_equal(before.attrs, after.attrs):
        parts.add(Part.MODULE)
    return [part for part in Part if part in parts]


REMEMBERED = 12
"""Names of passes that an error shows; TVM runs some hundred small ones for every kernel."""


@pass_instrument
class PassLog:
    """Remembers the names of the passes that ran, so that a failure can say how far it got."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.finished: list[str] = []

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Say of an error that leaves the block which pass it came from and which ran before.

        Raises:
            RuntimeError: from the error.
        """
        try:
            yield
        except Exception as error:
            if not self.running:
                raise
            before = ", ".join(self.finished[-REMEMBERED:]) or "none"
            raise RuntimeError(f"pass {self.running[-1]} failed: {error}; the passes before it: {before}") from error

    def run_before_pass(self, _mod: IRModule, info: Any) -> None:
        self.running.append(str(info.name))

    def run_after_pass(self, _mod: IRModule, info: Any) -> None:
        self.running.remove(str(info.name))
        self.finished.append(str(info.name))
