"""A package with two decoders: both are held against references of their own numbers, and a fault in the second is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from export.pipeline import export
from export.request import ExportRequest
from parity_tests.check.package_check import CheckOptions, check
from parity_tests.conftest import GOLDENS
from parity_tests.laboratory.onnx_tamper import tamper
from parity_tests.report.html_report import html
from parity_tests.report.markdown_report import markdown
from runtime_py.backends.ort import OrtBackend
from runtime_py.backends.records import MANY_ROWS
from runtime_py.errors import PackageError
from runtime_py.package import read

CASE = "minicpm-v"
OPTIONS = CheckOptions(steps=3, only="text")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    request = ExportRequest(
        str(GOLDENS / CASE),
        "cpu",
        output=tmp_path_factory.mktemp("twice") / "package",
        skip_verify=True,
        without_tokenizer=True,
        beyond_trained=True,
        options={"prefill_precision": "int8"},
    )
    return export(request, None)


def test_both_decoders_are_judged(package: Path) -> None:
    judged = check(package, GOLDENS / CASE, OPTIONS).judgement
    assert (str(judged.verdict), judged.first_failure) == ("pass", "")
    names = [c.comparison.title for c in judged.comparisons]
    alone = ["implementation", "kernels", "loss"]
    assert names == [*alone, *(f"many rows: {name}" for name in alone)]
    rows = {c.comparison.title: {p.measurement.probe: p.measurement.metrics for p in c.probes} for c in judged.comparisons}
    for name in ("implementation", "many rows: implementation"):
        assert max(metrics.get("relative_max", 0.0) for metrics in rows[name].values()) < 1e-4
    assert rows["loss"] != rows["many rows: loss"], "the second decoder has numbers of its own"
    page, words = html(judged), markdown(judged)
    assert all(name in page and name in words for name in names)


def test_a_fault_in_the_second_decoder_is_found_and_named(package: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(package, tmp_path / "package"))
    tamper(copy, MANY_ROWS, "layers.1.mlp.down.weight_scales", lambda scales: scales * 1.05)
    result = check(copy, GOLDENS / CASE, OPTIONS)
    assert result.verdict == "fail"
    assert result.first_failure is not None
    assert result.first_failure.startswith("many rows: implementation") and "layers.1" in result.first_failure


def test_the_manifest_lists_what_it_reads(package: Path) -> None:
    opened = read(package)
    graph = opened.manifest["backends"]["onnx"][MANY_ROWS]["file"]
    assert {graph, f"{graph}_data"} <= {row["path"] for row in opened.manifest["files"]}
    manifest = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    assert all(row["storage"] == "int8" for row in manifest["backends"]["onnx"][MANY_ROWS]["assignments"].values())
    assert OrtBackend(opened.folder, opened.manifest).files[MANY_ROWS] == graph
    manifest["files"] = [row for row in manifest["files"] if row["path"] != f"{graph}_data"]
    with pytest.raises(PackageError, match="no row of the manifest's files"):
        OrtBackend(opened.folder, manifest)
