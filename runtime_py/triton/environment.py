"""What the process that runs a model in Triton must be, checked before the model loads."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from runtime_py.errors import MachineError

THIS_PROGRAM = Path("/proc/self/exe")
"""Triton's stub: the program that holds this Python."""

OLD_HOME, NEW_HOME = b"numpy.core.multiarray", b"numpy._core"
"""Where NumPy 1 and NumPy 2 have their C interface. A stub that knows the second was built with pybind11 2.12 or later
(pybind/pybind11, include/pybind11/numpy.h); one that does not reads an array's item size at NumPy 1's place."""


def check_numpy(version: str, program: Path = THIS_PROGRAM) -> None:
    """Refuse NumPy 2 under a stub built for NumPy 1: every tensor would be its first element repeated.

    Raises:
        MachineError: it is so.
    """
    if int(version.partition(".")[0]) < 2 or knows_numpy_2(program):
        return
    raise MachineError(
        f"Triton's Python backend was built for NumPy 1, and Python brings NumPy {version}: every tensor would be wrong",
        "numpy>=1.26,<2 in the Python that Triton starts (the first python3 of its PATH)",
        "pip install 'numpy<2' there, or start tritonserver from an environment of this repository's requirements.txt",
    )


def knows_numpy_2(program: Path) -> bool:
    """Whether a program that reads NumPy's arrays in C knows NumPy 2; True for one that reads none, or cannot be read."""
    try:
        with program.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(NEW_HOME) >= 0 or content.find(OLD_HOME) < 0
    except (OSError, ValueError):
        return True


def choose_device(kind: str, number: str) -> None:
    """Let this process see the GPU of its instance alone, as number 0; nothing on the processor.

    Args:
        kind: ``model_instance_kind`` of Triton, ``CPU`` or ``GPU``; number: ``model_instance_device_id``.
    """
    if kind != "GPU":
        return
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = seen.split(",") if seen else []
    place = int(number)
    os.environ["CUDA_VISIBLE_DEVICES"] = names[place].strip() if place < len(names) else number
