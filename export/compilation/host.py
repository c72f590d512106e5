"""Which library an export makes for its own machine, beside the phone's."""

from __future__ import annotations

from runtime_py.backends.processor import architecture

X86_64, ARM64 = "x86_64", "aarch64"
"""Places of export.backends.mlc.library.TARGETS."""


def host_place() -> str:
    """The place that this machine's processor has its library built for."""
    return ARM64 if architecture() == ARM64 else X86_64
