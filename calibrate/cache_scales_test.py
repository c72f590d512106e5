"""A calibration that chooses the scales of a cache in bytes too, and exports that want them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from calibrate.request import CalibrationRequest
from calibrate.run import calibrate, plan
from calibrate.samples.prompts import prompts_of
from calibrate.statistics.cache_sizes import cache_sizes
from export.checkpoint.opened import open_checkpoint
from export.package.steps import stored_codes
from export.pipeline import plan as planned_export
from export.quantisation.cache_scales import FILE, CacheScales, read_scales
from export.quantisation.codes import DequantisedWeights
from export.quantisation.grids import GRIDS
from export.quantisation.stored import StoredCodes, read_manifest
from export.request import ExportRequest
from runtime_py.errors import UsageError

BYTES = {"cache_precision": "int8"}


def asked(output: Path, **changes: object) -> CalibrationRequest:
    given = {"model": "minicpm-v", "weights": "demo", "target": "cpu", "method": "mse-clip", **changes}
    return CalibrationRequest(output=output, samples=2, held_out=0, text_only=True, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrate(asked(tmp_path_factory.mktemp("bytes") / "codes", options=BYTES))


def exported(calibration: Path | None) -> dict[str, StoredCodes]:
    """What an export of a cache in bytes reads before any work."""
    request = ExportRequest("minicpm-v", "cpu", "demo", calibration=calibration, options=BYTES, skip_verify=True)
    return stored_codes(request, open_checkpoint(request), planned_export(request, None))


def test_scales_lie_beside_the_codes_and_reach_the_export(made: Path) -> None:
    manifest = read_manifest(made)
    told = {"file": f"onnx/{FILE}", "dtype": "int8", "margin": 1.0}
    assert manifest["backends"]["onnx"]["cache"] == told
    assert manifest["options"] == BYTES
    assert f"onnx/{FILE}" in {row["path"] for row in manifest["files"]}
    stored = exported(made)["onnx"]
    assert stored.cache_scales is not None and stored.layers
    assert stored.summary()["cache"] == told
    decoder = plan(asked(made)).checkpoint.spec.decoder
    assert len(stored.cache_scales.tensors) == 2 * decoder.layers


def stored_and_measured(folder: Path) -> tuple[CacheScales, CacheScales]:
    """The scales of a calibration, and those that one more pass of its samples through the finished model gives."""
    request = asked(folder, options=BYTES)
    planned = plan(request)
    processor, prompts = prompts_of(request, planned.checkpoint)
    assert planned.checkpoint.weights is not None
    stored = StoredCodes(folder, "onnx", planned.checkpoint.weights, planned.assignments["onnx"])
    finished = DequantisedWeights(stored.weights, stored, planned.assignments["onnx"], GRIDS)
    wanted = CacheScales.of_sizes(cache_sizes(planned.checkpoint.spec, finished, prompts, processor))
    assert stored.cache_scales is not None
    return stored.cache_scales, wanted


def assert_equal(one: CacheScales, other: CacheScales) -> None:
    assert set(one.tensors) == set(other.tensors)
    for name, scale in other.tensors.items():
        assert torch.equal(one.tensors[name], scale), name


def test_scales_of_the_pass_that_chose_the_codes_are_those_of_the_finished_model(made: Path) -> None:
    assert_equal(*stored_and_measured(made))


def test_codes_that_all_see_full_precision_have_scales_of_their_own_pass(tmp_path: Path, made: Path) -> None:
    parallel = calibrate(asked(tmp_path / "codes", options=BYTES, sequential=False))
    assert_equal(*stored_and_measured(parallel))
    one, other = (read_scales(folder / "onnx" / FILE).tensors for folder in (parallel, made))
    assert any(not torch.equal(one[name], scale) for name, scale in other.items()), "other codes, other scales"


def test_an_export_without_them_says_the_next_command(made: Path, tmp_path: Path) -> None:
    command = "python -m calibrate --model minicpm-v --weights demo --target cpu --cache-precision int8 -o scales"
    with pytest.raises(UsageError, match="no calibration was given") as raised:
        exported(None)
    assert command in raised.value.next_step
    without = calibrate(asked(tmp_path / "codes"))
    assert "cache" not in read_manifest(without)["backends"]["onnx"]
    assert (without / "onnx" / "decoder.head.safetensors").read_bytes() == (
        made / "onnx" / "decoder.head.safetensors"
    ).read_bytes()
    with pytest.raises(UsageError, match="was made without them") as raised:
        exported(without)
    assert command in raised.value.next_step
