"""Towers of every kind as machine code: what their graphs say; which towers have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.backends.onnx.vision_library.library import compile_vision
from export.backends.onnx.vision_library.written import FILES
from export.checkpoint.opened import open_folder
from export.pipeline import export
from export.request import ExportRequest
from export.source.hub import DEMO_FOLDER
from parity_tests.conftest import GOLDENS
from parity_tests.judging.metrics import row_cosines
from runtime_py.backends.ort import OrtBackend
from runtime_py.backends.records import VISION_LIBRARY
from runtime_py.contracts import VISION, StageContract
from runtime_py.errors import EdgeproofError, MachineError, UnsupportedModelError, UsageError
from runtime_py.package import read

DEMO = DEMO_FOLDER / "minicpm-v"


def asked(model: str, package: Path, **options: Any) -> ExportRequest:
    return ExportRequest(
        str(DEMO_FOLDER / model if (DEMO_FOLDER / model).is_dir() else GOLDENS / model),
        "cpu",
        output=package,
        skip_verify=True,
        without_tokenizer=not (DEMO_FOLDER / model).is_dir(),
        beyond_trained=True,
        options={"vision_library": True, **options},
    )


def pictures(contract: StageContract) -> dict[str, np.ndarray]:
    """Two pictures of the sizes that a tower takes; where it takes any, of 5 by 7 patches."""
    drawn = np.random.default_rng(0)
    sizes = {"slices": 2, "images": 2, "batch": 2, "height": 5 * 14, "width": 7 * 14}
    given = {}
    for tensor in contract.inputs:
        shape = [axis if isinstance(axis, int) else sizes.get(axis, 0) for axis in tensor.shape]
        given[tensor.name] = (tensor, shape)
    pixels, shape = given["pixel_values"]
    made = {"pixel_values": drawn.standard_normal(shape).astype(np.float32)}
    for name, count in (("row_weights", 5), ("column_weights", 7)):
        if name in given:
            weights = drawn.random((count, given[name][1][1])).astype(np.float32)
            made[name] = weights / weights.sum(1, keepdims=True)
    if "patch_positions" in given:
        made["patch_positions"] = drawn.integers(0, 20, 35)
    return made


@pytest.mark.parametrize("model", ["minicpm-v", "minicpm-v-2", "xverse-v", "omnilmm-12b", "cogvlm2", "minicpm-llama3-v"])
def test_a_tower_says_what_its_graph_says(model: str, tmp_path: Path) -> None:
    export(asked(model, tmp_path / "package"), None)
    given = read(tmp_path / "package")
    library, graph = (OrtBackend(given.folder, given.manifest, own_code=own, threads=1) for own in (True, False))
    if library.vision is None:
        pytest.skip(library.vision_missing)
    inputs = pictures(library.contracts[VISION])
    ours, theirs = (side.run(VISION, inputs)["vision_features"] for side in (library, graph))
    assert ours.shape == theirs.shape and ours.dtype == np.float32 and not np.array_equal(ours, theirs)
    # both round inputs of layers to bytes: a number on a boundary goes to either side
    assert row_cosines(theirs, ours).min() > 0.999
    one = {**inputs, "pixel_values": inputs["pixel_values"][1:]}
    assert np.array_equal(library.run(VISION, one)["vision_features"], ours[1:])


def test_libraries_and_index_are_listed_and_every_run_gives_the_same_bytes(tower_package: Path, tmp_path: Path) -> None:
    given = read(tower_package)
    block = given.manifest["backends"]["onnx"]
    assert list(block[VISION_LIBRARY]["libraries"]) == FILES.variants()
    listed = {row["path"] for row in given.manifest["files"]}
    assert {block[VISION_LIBRARY]["index"], *block[VISION_LIBRARY]["libraries"].values()} <= listed
    variant, file = next(iter(block[VISION_LIBRARY]["libraries"].items()))
    spec = open_folder(DEMO).spec.vision
    compile_vision(spec, tower_package / block["stages"][VISION]["file"], variant, tmp_path / "again.so")
    assert (tmp_path / "again.so").read_bytes() == (tower_package / file).read_bytes()


@pytest.mark.parametrize(
    ("model", "options", "error", "words"),
    [
        ("qwen2-vl", {}, UnsupportedModelError, "turn queries and keys"),
        ("minicpm-v", {"vision_precision": "int8_weights"}, UsageError, "--vision-precision int8_weights"),
        ("minicpm-v", {"vision_precision": "fp32"}, UsageError, "--vision-precision fp32"),
    ],
)
def test_what_it_does_not_have_is_refused_before_any_work(
    tmp_path: Path, model: str, options: dict[str, Any], error: type[EdgeproofError], words: str
) -> None:
    with pytest.raises(error, match=words):
        export(asked(model, tmp_path / "package", **options), None)
    assert not list(tmp_path.iterdir())


def test_a_machine_of_another_kind_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.backends.onnx.compiled_files.host_place", lambda: "aarch64")
    with pytest.raises(MachineError, match="no vision library on this machine"):
        export(asked("minicpm-v", tmp_path / "package"), None)
