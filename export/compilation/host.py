"""Which library an export makes for its own machine, beside the phone's."""

from __future__ import annotations

from runtime_py.backends.processor import architecture

X86_64, ARM64 = "x86_64", "aarch64"
"""Places of export.backends.mlc.library.TARGETS."""


def host_place(machine: str = "") -> str:
    """The place that a processor's library is built for.

    Args:
        machine: as ``platform.machine`` names it; this one where it is empty.
    """
    return ARM64 if architecture(machine) == ARM64 else X86_64
