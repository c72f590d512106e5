"""The sizes that a kernel takes, listed in the order in which they are found.

``gen_call_tir_inputs`` (apache-tvm 0.27.0.post1, tvm/relax/utils.py) gathers the symbolic sizes of a kernel's shapes in a
Python set and makes a list of it. A set of TVM's objects is walked in the order of their addresses, so a kernel that takes
two sizes takes them in another order from run to run. While `sizes_in_order` holds, that module's ``set`` is one that keeps
the order in which it was filled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

NAME = "set"


class FilledOrder:
    """The part of a set that ``gen_call_tir_inputs`` uses, walked in the order in which it was filled."""

    def __init__(self, items: Iterable[Any] = ()) -> None:
        self._items = dict.fromkeys(items)

    def add(self, item: Any) -> None:
        self._items[item] = None

    def update(self, items: Iterable[Any]) -> None:
        self._items |= dict.fromkeys(items)

    def __contains__(self, item: object) -> bool:
        return item in self._items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __sub__(self, other: FilledOrder) -> FilledOrder:
        return FilledOrder(item for item in self if item not in other)


@contextmanager
def sizes_in_order() -> Iterator[None]:
    """Kernels made within take their sizes in an order that does not depend on addresses."""
    from tvm.relax import utils

    setattr(utils, NAME, FilledOrder)
    try:
        yield
    finally:
        delattr(utils, NAME)
