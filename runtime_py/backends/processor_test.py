"""Libraries for other processors are refused before they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime_py.backends.processor import require_processor
from runtime_py.errors import MachineError

X86 = "flags\t\t: fpu avx avx2 bmi2 fma f16c\n"
ARM64 = "Features\t: fp asimd asimddp\n"


def library(folder: Path, machine: int) -> Path:
    """The first bytes of a shared object."""
    path = folder / "model.so"
    kinds = (3).to_bytes(2, "little") + machine.to_bytes(2, "little")
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + kinds + bytes(44))
    return path


def listing(folder: Path, text: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text("processor\t: 0\n" + text)
    return path


@pytest.mark.parametrize(
    ("number", "machine", "text"), [(62, "x86_64", X86), (62, "AMD64", X86), (183, "aarch64", ARM64), (183, "arm64", ARM64)]
)
def test_a_library_of_this_machine_is_loaded(tmp_path: Path, number: int, machine: str, text: str) -> None:
    require_processor(library(tmp_path, number), machine, listing(tmp_path, text))
    require_processor(library(tmp_path, number), machine, tmp_path / "absent")


@pytest.mark.parametrize(
    ("number", "machine", "text", "words"),
    [
        (183, "x86_64", X86, "built for aarch64, and this machine is x86_64"),
        (62, "aarch64", ARM64, "built for x86_64, and this machine is aarch64"),
        (8, "x86_64", X86, "built for ELF machine 8"),
        (62, "x86_64", "flags\t: fpu sse2 f16c\n", "lacks: avx2, bmi2, fma"),
        (183, "aarch64", "Features\t: fp asimd\n", "lacks: asimddp"),
    ],
)
def test_another_machine_is_told(tmp_path: Path, number: int, machine: str, text: str, words: str) -> None:
    with pytest.raises(MachineError, match=words):
        require_processor(library(tmp_path, number), machine, listing(tmp_path, text))


def test_what_is_no_object_is_left_to_the_loader(tmp_path: Path) -> None:
    (tmp_path / "model.so").write_bytes(b"\x7fELF")
    require_processor(tmp_path / "model.so", "x86_64")
