"""Towers of every kind as machine code: what their graphs say; which towers have none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export.backends.base import BuildOptions
from export.backends.onnx import record
from export.backends.onnx.backend import OnnxBackend
from export.backends.onnx.vision_library.library import compile_vision
from export.backends.onnx.vision_library.written import FILES
from export.checkpoint.opened import open_folder, published_specs
from export.modules.vision.specs import PositionKind, RotaryVisionSpec, VisionSpec
from export.source.hub import DEMO_FOLDER
from export.specs import ModelSpec
from parity_tests.judging.metrics import row_cosines
from parity_tests.laboratory import vision_towers
from runtime_py.backends.records import VISION_LIBRARY
from runtime_py.backends.vision_library import VISION_VARIANTS
from runtime_py.contracts import VISION
from runtime_py.errors import EdgeproofError, MachineError, PackageError, UnsupportedModelError, UsageError
from runtime_py.package import read
from runtime_py.preprocess.patches import rotary_angles
from targets.registry import target_named

PATCHES = (9, 8)
"""Rows and columns of patches of a picture: more than a panel of tokens, and no whole number of them."""

ROTARY = "qwen2-vl"

SIZES: dict[str, dict[str, Any]] = {
    "minicpm-v": {},
    "xverse-v": {},
    "cogvlm2": {},
    "minicpm-llama3-v": {"grid": None},
    "any size": {"grid": None, "positions": PositionKind.RESAMPLED},
    ROTARY: {},
}
"""Families of towers of every kind: with and without a class token, whose row is given or not, norms before layers and
behind them, every activation, positions of one grid, chosen from a table, and resampled, and rotary ones."""

FINER = "cogvlm2"
FORMS = {
    "vision_encoder.blocks.0.attention.out": "fp16",
    "vision_encoder.blocks.1.attention.qkv": "int8_14",
    "vision_encoder.blocks.1.mlp.fc1": "fp16",
}
"""Of this one's tower, whose layers are in every form."""

QUICK = ("cogvlm2", "any size", ROTARY)
"""Those that are compared in every run; each takes some seconds to trace and to compile."""


def small(name: str) -> ModelSpec:
    """A published model with a small tower."""
    family = name if name != "any size" else "minicpm-v"
    spec = next(made for each, made in published_specs() if each.name == family)
    sizes: dict[str, Any] = {"width": 40, "heads": 4, "mlp_width": 76, "layers": 2}
    if isinstance(spec.vision, RotaryVisionSpec):
        return replace(spec, vision=replace(spec.vision, **{**sizes, "width": 48, "patch_values": 36}))
    assert isinstance(spec.vision, VisionSpec)
    changes: dict[str, Any] = {"grid": PATCHES, **SIZES[name]}
    tower = replace(spec.vision, **sizes, patch_size=4, native_grid=7, **changes)
    return replace(spec, vision=tower, image=replace(spec.image, patch=4))


def pictures(spec: ModelSpec) -> dict[str, np.ndarray]:
    """Two pictures, and the positions of their patches."""
    drawn, (rows, columns) = np.random.default_rng(0), PATCHES
    if isinstance(spec.vision, RotaryVisionSpec):
        rows += 1  # patches are joined by squares of four
        pixels = drawn.standard_normal((2, rows * columns, spec.vision.patch_values)).astype(np.float32)
        return {
            "pixel_values": pixels,
            "rotary_angles": rotary_angles(rows, columns, spec.vision.merge, spec.vision.head_dim),
        }
    assert isinstance(spec.vision, VisionSpec)
    made: dict[str, np.ndarray] = {"pixel_values": drawn.standard_normal((2, 3, 4 * rows, 4 * columns)).astype(np.float32)}
    if spec.vision.positions is PositionKind.INDEXED:
        made["patch_positions"] = drawn.integers(0, 49, rows * columns)
    if spec.vision.positions is PositionKind.RESAMPLED:
        for key, count in (("row_weights", rows), ("column_weights", columns)):
            weights = drawn.random((count, 7)).astype(np.float32)
            made[key] = weights / weights.sum(1, keepdims=True)
    return made


@pytest.mark.skipif(not FILES.variants(), reason="no vision library is compiled on this machine")
@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SIZES if name not in QUICK)]
)
def test_a_tower_says_what_its_graph_says(name: str, tmp_path: Path) -> None:
    spec = small(name)
    forms = FORMS if name == FINER else {}
    grids = {layer: {form.name: form.grid for form in record.FINER}[form] for layer, form in forms.items()}
    path = vision_towers.write(spec, "int8", tmp_path / "graphs", forms)
    told = compile_vision(
        spec.vision, path, grids, VISION_VARIANTS[0], tmp_path / FILES.library("graphs", VISION_VARIANTS[0])
    )
    (tmp_path / FILES.index("graphs")).write_text(json.dumps(told), encoding="utf-8")
    try:
        library = vision_towers.opened_library(spec, path, threads=1)
    except MachineError as error:
        pytest.skip(error.what)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = pictures(spec)
    ours, theirs = library.run(inputs)["vision_features"], session.run(None, inputs)[0]
    assert ours.shape == theirs.shape and ours.dtype == np.float32 and not np.array_equal(ours, theirs)
    # both round inputs of layers to bytes: a number on a boundary goes to either side
    assert row_cosines(theirs, ours).min() > 0.999
    one = {**inputs, "pixel_values": inputs["pixel_values"][1:]}
    assert np.array_equal(library.run(one)["vision_features"], ours[1:])
    assert library.takes(inputs)
    if name == ROTARY:
        with pytest.raises(PackageError, match="angles of 79"):
            library.run({**inputs, "rotary_angles": inputs["rotary_angles"][1:]})


def test_libraries_and_index_are_listed_and_every_run_gives_the_same_bytes(tower_package: Path, tmp_path: Path) -> None:
    given = read(tower_package)
    block = given.manifest["backends"]["onnx"]
    assert list(block[VISION_LIBRARY]["libraries"]) == FILES.variants()
    listed = {row["path"] for row in given.manifest["files"]}
    assert {block[VISION_LIBRARY]["index"], *block[VISION_LIBRARY]["libraries"].values()} <= listed
    variant, file = next(iter(block[VISION_LIBRARY]["libraries"].items()))
    spec = open_folder(DEMO_FOLDER / "minicpm-v").spec.vision
    assert isinstance(spec, VisionSpec)
    compile_vision(spec, tower_package / block["stages"][VISION]["file"], {}, variant, tmp_path / "again.so")
    assert (tmp_path / "again.so").read_bytes() == (tower_package / file).read_bytes()


@pytest.mark.parametrize(
    ("name", "changes", "options", "error", "words"),
    [
        (ROTARY, {"patch_values": 294}, {}, UnsupportedModelError, "5120 and 294 wide, no multiples of 4"),
        ("minicpm-v", {"mlp_width": 89}, {}, UnsupportedModelError, "no multiples of 4"),
        ("minicpm-v", {"heads": 128}, {}, UnsupportedModelError, "its heads are 9 wide"),
        ("minicpm-v", {}, {"vision_precision": "int8_weights"}, UsageError, "--vision-precision int8_weights"),
        ("minicpm-v", {}, {"vision_precision": "fp32"}, UsageError, "--vision-precision fp32"),
    ],
)
def test_what_it_does_not_have_is_refused_before_any_work(
    name: str, changes: dict[str, Any], options: dict[str, Any], error: type[EdgeproofError], words: str
) -> None:
    spec = next(made for each, made in published_specs() if each.name == name)
    spec = replace(spec, vision=replace(spec.vision, **changes))
    with pytest.raises(error, match=words):
        OnnxBackend().refuse(spec, asked(**options))


def test_a_machine_of_another_kind_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.backends.onnx.compiled_files.host_place", lambda: "aarch64")
    with pytest.raises(MachineError, match="no vision library on this machine"):
        OnnxBackend().refuse(small("minicpm-v"), asked())


def asked(**options: Any) -> BuildOptions:
    target = target_named("cpu")
    return BuildOptions(target, "int4", target.limits, {"vision_library": True, **options})
