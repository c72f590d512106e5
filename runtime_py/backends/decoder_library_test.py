"""Which processors a decoder library runs on, and that its caches may lie anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime_py.backends import processor
from runtime_py.backends.compiled_stage_test import moved
from runtime_py.backends.decoder_library import chosen_variant
from runtime_py.backends.ort import OrtBackend
from runtime_py.backends.processor import VARIANTS
from runtime_py.errors import MachineError
from runtime_py.model import load

FILES = dict.fromkeys(VARIANTS, "x.so")


def test_the_fastest_library_that_a_processor_runs_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def on(machine: str, *has: str) -> str:
        monkeypatch.setattr(processor, "architecture", lambda: machine)
        monkeypatch.setattr(processor, "instructions", lambda: set(has))
        return chosen_variant(FILES)

    every = {name: needed for name, (_, needed) in VARIANTS.items()}
    assert on("x86_64", *every["x86-64-vnni"]) == "x86-64-vnni"
    assert on("x86_64", *every["x86-64-v3"]) == "x86-64-v3"
    assert on("aarch64", *every["aarch64"]) == "aarch64"
    with pytest.raises(MachineError, match="runs none of the package's decoder libraries"):
        on("x86_64", "sse2")
    with pytest.raises(MachineError, match="riscv64"):
        on("riscv64")


@pytest.mark.parametrize("tokens", [1, 3])
def test_caches_may_begin_at_any_number(library_package: Path, tokens: int) -> None:
    with load(library_package, trust=True, threads=1) as model:
        backend = model.backend
        assert isinstance(backend, OrtBackend) and backend.library is not None
        width = int(backend.contracts["decoder"].inputs[0].shape[-1])
        embeds = np.random.default_rng(0).standard_normal((1, tokens, width))
        given: dict[str, np.ndarray] = {"inputs_embeds": embeds.astype(np.float32), "position_ids": np.arange(tokens)[None]}
        right, shifted = backend.start(16), backend.start(16)
        shifted.buffers.arrays = {name: moved(array, 4) for name, array in shifted.buffers.arrays.items()}
        assert backend.library.takes(1, shifted.buffers)
        one, other = (backend.library.run(given, np.array([0]), state.buffers, np.array([-1])) for state in (right, shifted))
        assert np.array_equal(one, other)
        for name, array in right.buffers.arrays.items():
            assert np.array_equal(shifted.buffers.arrays[name], array) and array.any()
