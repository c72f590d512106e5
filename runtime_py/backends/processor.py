"""Whether this processor can run a shared library, asked before it is loaded: a missing instruction ends the process."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path

from runtime_py.errors import MachineError

ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
"""``e_machine`` of the processors that libraries are built for."""

NAMES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Other names of the same processors, as systems give them."""

AVX2 = ("avx2", "fma", "f16c", "bmi2")
AVX512 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni")
VARIANTS = {
    "x86-64-vnni": ("x86_64", (*AVX512, *AVX2)),
    "x86-64-v3": ("x86_64", AVX2),
    "aarch64": ("aarch64", ("asimddp",)),
}
"""Names of machine codes, the fastest first: their architecture and the instructions they use, in Linux's words."""

INSTRUCTIONS = {"x86_64": AVX2, "aarch64": ("asimddp",)}
"""What libraries of ours use beyond each architecture's first version, in Linux's words: x86-64-v3, arm64's dot products."""

CPUINFO = Path("/proc/cpuinfo")


def architecture(machine: str = "") -> str:
    """A processor's architecture as Linux names it: ``x86_64``, ``aarch64``.

    Args:
        machine: as ``platform.machine`` names it; this one where it is empty.
    """
    name = (machine or platform.machine()).lower()
    return NAMES.get(name, name)


def require_processor(library: Path, machine: str = "", cpuinfo: Path = CPUINFO) -> None:
    """Refuse a library for another processor; what is no ELF file is left to the loader.

    Args:
        machine: as ``platform.machine`` names it; this one where it is empty.
        cpuinfo: Linux's file; where there is none, instructions are not asked for.

    Raises:
        MachineError: it is built for another architecture, or for instructions that this processor does not list.
    """
    with library.open("rb") as handle:
        header = handle.read(20)
    if header[:6] != b"\x7fELF\x02\x01" or len(header) < 20:
        return
    number = int.from_bytes(header[18:20], "little")
    built = ELF_MACHINES.get(number, f"ELF machine {number}")
    here = architecture(machine)
    if built != here:
        raise MachineError(
            f"{library.name} is built for {built}, and this machine is {here}",
            "the library of this machine",
            f"export the package on a {here} machine, or ask it on a {built} one",
        )
    lacking = sorted(set(INSTRUCTIONS[built]) - instructions(cpuinfo))
    if lacking and cpuinfo.is_file():
        raise MachineError(
            f"{library.name} needs instructions that this processor lacks: {', '.join(lacking)}",
            "x86-64-v3 (2013 and later)" if built == "x86_64" else "arm64 with dot products (Armv8.2 and later)",
            "ask the package on another machine",
        )


def fastest_variant(variants: Iterable[str]) -> str | None:
    """The fastest of these keys of `VARIANTS` that this processor runs; None where it runs none."""
    here, has, given = architecture(), instructions(), set(variants)
    for variant, (machine, needed) in VARIANTS.items():
        if variant in given and machine == here and has.issuperset(needed):
            return variant
    return None


def instructions(cpuinfo: Path = CPUINFO) -> set[str]:
    """What the first core lists, in Linux's words; none where there is no such file."""
    if not cpuinfo.is_file():
        return set()
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()
