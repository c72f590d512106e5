"""Stored codes: rows come back as they were written, and a calibration of something else is refused by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from export.quantisation.codes import Codes
from export.quantisation.grids import GRIDS
from export.quantisation.overlay import Overlay
from export.quantisation.spec import Assignment, LayerShape, Storage
from export.quantisation.stored import StoredCodes, read_manifest, write_block
from runtime_py.errors import PackageError, UsageError

NAME, BLOCK, GRID = "decoder.layers.0.mlp.down", "onnx/layer.safetensors", "ort_int4_asym_b32"
WEIGHT = torch.randn(12, 80, generator=torch.Generator().manual_seed(0))


class Weights:
    """One matrix, which a test may turn into another checkpoint's."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        assert name == f"{NAME}.weight"
        return self.weight[start:stop]

    def tensor(self, name: str) -> torch.Tensor:
        return self.rows(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.weight.shape)


def assigned(name: str = NAME, rows: int = 12, grid: str = GRID) -> dict[str, Assignment]:
    return {name: Assignment(LayerShape(name, "decoder", rows, 80), Storage.INT4, grid, "")}


def written(folder: Path, **changes: Any) -> Path:
    codes = GRIDS[GRID].quantise(WEIGHT)
    write_block(folder / BLOCK, {NAME: (codes, GRIDS[GRID])}, Overlay())
    content = (folder / BLOCK).read_bytes()
    row = {"path": BLOCK, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    layer = {"file": BLOCK, "grid": GRID, "rows": 12, "columns": 80}
    backends = {"onnx": {"layers": {NAME: layer}}}
    manifest = {"kind": "calibration", "schema": 1, "backends": backends, "files": [row], **changes}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def stored(folder: Path, weight: torch.Tensor = WEIGHT, **layer: Any) -> StoredCodes:
    return StoredCodes(folder, "onnx", Weights(weight), assigned(**layer))


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    made, codes = stored(written(tmp_path)), GRIDS[GRID].quantise(WEIGHT)
    for start, stop in ((0, 12), (5, 9), (11, 12)):
        got = made.rows(NAME, start, stop)
        assert isinstance(got, Codes) and got.zero_points is not None and codes.zero_points is not None
        assert torch.equal(got.codes, codes.codes[start:stop])
        assert torch.equal(got.scales, codes.scales[start:stop])
        assert torch.equal(got.zero_points, codes.zero_points[start:stop])


def test_a_package_is_told_which_calibration_it_is_of(tmp_path: Path) -> None:
    told = {"method": "gptq", "sequential": True, "samples": {"count": 3}}
    found = stored(written(tmp_path, **told)).summary()
    content = (tmp_path / "manifest.json").read_bytes()
    assert found == {**told, "manifest_sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("changes", [{"kind": "package"}, {"schema": 2}, {"schema": None}])
def test_a_manifest_of_another_kind_or_schema_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert read_manifest(written(tmp_path))["kind"] == "calibration"
    with pytest.raises(UsageError, match="no calibration of schema 1"):
        read_manifest(written(tmp_path, **changes))


@pytest.mark.parametrize("text", ["[]", "5", "{}"])
def test_a_manifest_that_is_no_object_of_ours_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="no calibration of schema 1"):
        read_manifest(tmp_path)


def test_a_file_that_is_not_as_it_was_written_is_refused(tmp_path: Path) -> None:
    whole = (written(tmp_path) / BLOCK).read_bytes()
    for damaged in (whole[:-1], whole + b"\0", whole[:-1] + bytes([whole[-1] ^ 1])):
        (tmp_path / BLOCK).write_bytes(damaged)
        with pytest.raises(PackageError, match="differs from the manifest"):
            stored(tmp_path)
    (tmp_path / BLOCK).unlink()
    with pytest.raises(PackageError, match="differs from the manifest"):
        stored(tmp_path)


def test_a_file_outside_the_folder_is_refused_though_its_hash_is_right(tmp_path: Path) -> None:
    folder = tmp_path / "codes"
    written(folder)
    content = (folder / BLOCK).read_bytes()
    (tmp_path / "other.safetensors").write_bytes(content)
    row = {"path": "../other.safetensors", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    written(folder, files=[row])
    with pytest.raises(PackageError, match="differs from the manifest"):
        stored(folder)


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        ({"name": "decoder.layers.1.mlp.down"}, f"{NAME} is no layer of this model"),
        ({"rows": 24}, r"\[12, 80\] stored, \[24, 80\] in the model"),
        ({"grid": "ort_int4_b32"}, f"stored for {GRID}, the export wants ort_int4_b32"),
        ({"grid": ""}, f"stored for {GRID}, the export wants int4"),
    ],
)
def test_codes_of_another_layer_shape_or_grid_are_named(tmp_path: Path, layer: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        stored(written(tmp_path), **layer)


def test_codes_of_another_checkpoint_of_the_same_shape_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    stored(tmp_path, WEIGHT + 0.2 * torch.randn(WEIGHT.shape, generator=torch.Generator().manual_seed(1)))
    stored(tmp_path, torch.zeros_like(WEIGHT))  # nothing to compare with
    foreign = torch.randn(WEIGHT.shape, generator=torch.Generator().manual_seed(1))
    for other in (foreign, WEIGHT + 0.8 * foreign, -WEIGHT, WEIGHT.flip(0)):
        with pytest.raises(UsageError, match=f"not of this checkpoint: {NAME} reads back with cosine"):
            stored(tmp_path, other)
