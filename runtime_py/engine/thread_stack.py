"""The stack size of threads that compute.

A decoder call in a thread with the system's own stack (8 MB) took 128 to 150 ms where the same call took 86 to 88 in the
main thread and 97 to 118 in one with 64 MB (onnxruntime 1.32, x86-64 with AMX, Linux; docs/results/serving.md). Why is not
known.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STACK_BYTES = 64 << 20
"""Bytes of address space; memory is taken as it is written to."""


@contextmanager
def thread_stack_size(size: int) -> Iterator[None]:
    """Threads that are started inside have a stack of ``size`` bytes, where the system allows it."""
    before = threading.stack_size()
    with suppress(ValueError, RuntimeError):  # a size that is refused, a Python without the function's means
        threading.stack_size(size)
    try:
        yield
    finally:
        threading.stack_size(before)
