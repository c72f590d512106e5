"""A package whose cache holds bytes is held against a reference that rounds alike, and a wrong scale in it is found."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from export.backends.onnx.conftest import cache_scales
from export.checkpoint.opened import open_folder
from export.package.journal import sha256_of
from export.pipeline import export
from export.quantisation.cache_scales import FILE, KEY, VALUE, CacheScales, read_scales, scale_name, write_scales
from export.quantisation.stored import SCHEMA
from export.request import ExportRequest
from parity_tests.check.package_check import CheckOptions, check
from parity_tests.conftest import GOLDENS
from parity_tests.laboratory.onnx_tamper import tamper
from parity_tests.report.html_report import html
from runtime_py.contracts import DECODER
from runtime_py.errors import UsageError

CASE = "minicpm-v"


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with the scales of a cache and no codes."""
    folder, opened = tmp_path_factory.mktemp("calibration"), open_folder(GOLDENS / CASE)
    assert opened.weights is not None
    path = folder / "onnx" / FILE
    # every token once, as one prompt
    embeds = opened.weights.tensor("embed_tokens.table.weight").float().numpy() * opened.spec.embed.scale
    write_scales(path, cache_scales(opened.spec, opened.weights, {"inputs_embeds": embeds[None]}))
    row = {"path": f"onnx/{FILE}", "bytes": path.stat().st_size, "sha256": sha256_of(path)}
    block = {"layers": {}, "cache": {"file": row["path"], "dtype": "int8", "margin": 1.0}}
    manifest = {
        "kind": "calibration", "schema": SCHEMA, "method": "none", "sequential": True, "samples": {}, "choice": None,
        "search": None, "backends": {"onnx": block}, "files": [row],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def package(calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its files have other names too, as those of a hub's cache or of a copy by links have."""
    made, linked = (tmp_path_factory.mktemp("bytes") / name for name in ("package", "linked"))
    return Path(shutil.copytree(export(asked(made, calibration), None), linked, copy_function=os.link))


def asked(output: Path, calibration: Path | None) -> ExportRequest:
    return ExportRequest(
        str(GOLDENS / CASE),
        "cpu",
        output=output,
        calibration=calibration,
        skip_verify=True,
        without_tokenizer=True,
        beyond_trained=True,
        options={"cache_precision": "int8", "prefill_precision": "int8"},
    )


def options(calibration: Path) -> CheckOptions:
    return CheckOptions(steps=3, only="text", calibration=calibration)


def test_both_decoders_are_exact_but_for_bytes_that_round_the_other_way(package: Path, calibration: Path) -> None:
    judged = check(package, GOLDENS / CASE, options(calibration)).judgement
    assert (str(judged.verdict), judged.first_failure) == ("pass", "")
    rows = {c.comparison.title: [p.measurement.metrics for p in c.probes] for c in judged.comparisons}
    alone = ("implementation", "kernels", "loss")
    assert list(rows) == [*alone, *(f"many rows: {name}" for name in alone)]
    for name in ("implementation", "many rows: implementation"):
        assert max(metrics.get("relative_max", 0.0) for metrics in rows[name]) < 2e-3


def first_channel(scales: np.ndarray) -> np.ndarray:
    scales[0, 0, 0] /= 8
    return scales


@pytest.mark.parametrize("half", [KEY, VALUE])
def test_one_channel_s_scale_that_is_too_small_is_found_and_named(
    package: Path, calibration: Path, tmp_path: Path, half: str
) -> None:
    copy = Path(shutil.copytree(package, tmp_path / "package"))
    tamper(copy, DECODER, scale_name(1, half).removeprefix("decoder."), first_channel)
    found(copy, calibration, "layers.1")


def test_scales_of_keys_and_values_in_each_other_s_place_are_found(package: Path, calibration: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(package, tmp_path / "package"))
    scales = read_scales(calibration / "onnx" / FILE).tensors
    for half, other in ((KEY, VALUE), (VALUE, KEY)):
        swapped = scales[scale_name(1, other)][:, None].numpy()
        tamper(copy, DECODER, scale_name(1, half).removeprefix("decoder."), partial(_replaced, by=swapped))
    found(copy, calibration, "layers.1")


def _replaced(_scales: np.ndarray, by: np.ndarray) -> np.ndarray:
    return by


def found(package: Path, calibration: Path, block: str) -> None:
    """By scales that are not the calibration's, whatever answers show of them."""
    result = check(package, GOLDENS / CASE, options(calibration))
    assert result.verdict == "fail"
    assert result.first_failure is not None and block in result.first_failure
    assert "cache scales" in {judged.comparison.title for judged in result.judgement.comparisons}


def test_a_scale_that_holds_too_little_in_the_calibration_too_is_found(calibration: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(calibration, tmp_path / "calibration"))
    path = folder / "onnx" / FILE
    tensors = dict(read_scales(path).tensors)
    tensors[scale_name(1, VALUE)][0, 0] /= 8
    write_scales(path, CacheScales(tensors))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][0] |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    package = export(asked(tmp_path / "package", folder), None)
    result = check(package, GOLDENS / CASE, options(folder))
    assert result.verdict == "fail"
    assert result.first_failure is not None
    assert result.first_failure.startswith("cache scales") and "layers.1" in result.first_failure
    assert "cache scales: against" in html(result.judgement)


def test_without_scales_an_export_says_the_next_command(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no calibration was given") as raised:
        export(asked(tmp_path / "package", None), None)
    assert f"python -m calibrate --model {GOLDENS / CASE} --target cpu --cache-precision int8" in raised.value.next_step
    assert not list(tmp_path.iterdir())
