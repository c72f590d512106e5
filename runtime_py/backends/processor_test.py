"""Libraries for other processors are refused before they are loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from runtime_py.backends import processor
from runtime_py.backends.processor import VARIANTS, fastest_variant, require_processor
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


def test_the_fastest_of_what_is_there_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def on(machine: str, *has: str, variants: Iterable[str] = VARIANTS) -> str | None:
        monkeypatch.setattr(processor, "architecture", lambda: machine)
        monkeypatch.setattr(processor, "instructions", lambda: set(has))
        return fastest_variant(variants)

    every = {name: needed for name, (_, needed) in VARIANTS.items()}
    assert on("x86_64", *every["x86-64-vnni"]) == "x86-64-vnni"
    assert on("x86_64", *every["x86-64-vnni"], variants=["x86-64-v3"]) == "x86-64-v3"
    assert on("x86_64", *every["x86-64-v3"]) == "x86-64-v3"
    assert on("x86_64", *every["x86-64-v3"], variants=["x86-64-vnni"]) is None
    assert on("aarch64", *every["aarch64"], *every["x86-64-vnni"]) == "aarch64"
    assert on("x86_64", *every["x86-64-vnni"], variants=[]) is None


def test_what_is_no_object_is_left_to_the_loader(tmp_path: Path) -> None:
    (tmp_path / "model.so").write_bytes(b"\x7fELF")
    require_processor(tmp_path / "model.so", "x86_64")
