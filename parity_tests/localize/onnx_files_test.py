"""Other numbers in an ONNX package's weight files are named, whichever graph reads them and however little they move."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.pipeline import export
from export.request import ExportRequest
from parity_tests.check.candidate import open_candidate
from parity_tests.check.package_check import CheckOptions, check
from parity_tests.conftest import GOLDENS, ExportedPackage
from parity_tests.laboratory.onnx_tamper import tamper
from parity_tests.localize.onnx_files import other_parameters
from parity_tests.reference.checkpoint_side import open_checkpoint
from runtime_py.backends.records import MANY_ROWS, ONNX
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, VISION

CASE = "minicpm-v"


def others(package: Path) -> list[str]:
    return other_parameters(open_candidate(package), open_checkpoint(GOLDENS / CASE))


def least(place: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """The last bit of one stored number."""

    def changed(values: np.ndarray) -> np.ndarray:
        values.view(np.uint8)[place] ^= 1
        return values

    return changed


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a second decoder."""
    request = ExportRequest(
        str(GOLDENS / CASE), "cpu", output=tmp_path_factory.mktemp("twice") / "package", skip_verify=True,
        without_tokenizer=True, beyond_trained=True, options={"prefill_precision": "int8"},
    )  # fmt: skip
    return export(request, None)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_an_export_holds_the_numbers_of_its_checkpoint(exported: ExportedPackage, precision: str) -> None:
    assert others(exported(CASE, "cpu", precision)) == []


def test_one_bit_is_found_in_every_graph(twice: Path, tmp_path: Path) -> None:
    assert others(twice) == []
    copy = Path(shutil.copytree(twice, tmp_path / "package"))
    damaged = [
        (VISION, "blocks.1.mlp.fc1.bias", (3,)),
        (CONNECTOR, "query", (-1, 0)),
        (EMBED, "table.weight_codes", (-1, 0)),
        (DECODER, "layers.1.mlp.down.weight_scales", (-1, 0)),
        (MANY_ROWS, "layers.0.mlp.down.weight_codes", (0, 0)),
    ]
    for stage, name, place in damaged:
        tamper(copy, stage, name, least(place))
    assert others(copy) == [f"{DECODER if stage == MANY_ROWS else stage}.{name}" for stage, name, _ in damaged]


def test_a_check_fails_for_one_bit_that_nothing_else_shows(copied: ExportedPackage) -> None:
    package = copied(CASE, "cpu", "int4")
    tamper(package, VISION, "blocks.1.mlp.fc1.bias", least((0,)))
    judged = check(package, GOLDENS / CASE, CheckOptions(steps=1, only="text")).judgement
    assert str(judged.verdict) == "fail"
    assert judged.first_failure is not None and judged.first_failure.startswith("files")


def test_parameters_that_the_model_does_not_have_are_named(copied: ExportedPackage) -> None:
    package = copied(CASE, "cpu", "int4")
    graph = package / ONNX.block(json.loads((package / "manifest.json").read_text()))["stages"][EMBED]["file"]
    model = onnx.load(str(graph), load_external_data=False)
    names = ["other.weight", "other.weight_codes", "table.weight_scales"]
    (scales,) = (tensor for tensor in model.graph.initializer if tensor.name == names[2])
    for name in names[:2]:
        model.graph.initializer.add().CopyFrom(scales)
        model.graph.initializer[-1].name = name
    scales.dims[0] += 1
    graph.write_bytes(model.SerializeToString())
    assert others(package) == [f"{EMBED}.{name}" for name in (names[2], *names[:2])]
