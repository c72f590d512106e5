"""Which processors a vision library runs on, and what it does of a package's stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime_py.backends import vision_library
from runtime_py.backends.conftest import TOWER
from runtime_py.backends.ort import OrtBackend
from runtime_py.backends.processor import VARIANTS
from runtime_py.backends.vision_library import VISION_VARIANTS, chosen_variant
from runtime_py.contracts import VISION
from runtime_py.errors import MachineError, PackageError
from runtime_py.model import load

FILES = dict.fromkeys(VARIANTS, "x.so")


def test_it_runs_where_it_is_faster_than_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def on(machine: str, *has: str) -> str:
        monkeypatch.setattr(vision_library, "architecture", lambda: machine)
        monkeypatch.setattr(vision_library, "instructions", lambda: set(has))
        return chosen_variant(FILES)

    needed = VARIANTS[VISION_VARIANTS[0]][1]
    assert on("x86_64", *needed) == VISION_VARIANTS[0]
    for machine, has in (("x86_64", (*needed, "amx_int8")), ("x86_64", needed[1:]), ("aarch64", needed)):
        with pytest.raises(MachineError, match="the graph runs"):
            on(machine, *has)


def test_the_tower_runs_in_it_and_its_graph_is_not_opened(tower_package: Path) -> None:
    TOWER.opened(tower_package)
    with load(tower_package, trust=True, threads=1) as model:
        backend = model.backend
        assert isinstance(backend, OrtBackend) and backend.vision is not None and VISION not in backend._opened
        shape = [axis if isinstance(axis, int) else 2 for axis in backend.contracts[VISION].inputs[0].shape]
        pixels = np.random.default_rng(0).standard_normal(shape)
        said = backend.run(VISION, {"pixel_values": pixels})["vision_features"]
        assert said.shape[0] == 2 and np.array_equal(said, backend.vision.run({"pixel_values": pixels})["vision_features"])
        with pytest.raises(PackageError, match="does not fit its contract"):
            backend.run(VISION, {"pixel_values": pixels[0]})
        with pytest.raises(PackageError, match="is missing"):
            backend.run(VISION, {})


def test_a_picture_of_too_many_tokens_is_refused(tower_package: Path) -> None:
    library = TOWER.opened(tower_package)
    shape = [axis if isinstance(axis, int) else 1 for axis in library._contract.inputs[0].shape]
    library._most = 3
    with pytest.raises(PackageError, match="at most 3"):
        library.run({"pixel_values": np.zeros(shape, np.float32)})


def test_the_graph_runs_a_picture_of_too_many_tokens(tower_package: Path, caplog: pytest.LogCaptureFixture) -> None:
    TOWER.opened(tower_package)
    with load(tower_package, trust=True, threads=1) as model:
        backend = model.backend
        assert isinstance(backend, OrtBackend) and backend.vision is not None
        shape = [axis if isinstance(axis, int) else 1 for axis in backend.contracts[VISION].inputs[0].shape]
        inputs = {"pixel_values": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
        compiled = backend.run(VISION, inputs)["vision_features"]
        backend.vision._most = 3
        written, again = (backend.run(VISION, inputs)["vision_features"] for _ in range(2))
    assert np.array_equal(written, again) and not np.array_equal(written, compiled)
    assert caplog.text.count("the graph runs a picture of") == 1
