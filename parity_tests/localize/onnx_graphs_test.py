"""Graphs that only a long context would show to be wrong, against those that are traced anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from parity_tests.check.package_check import CheckOptions, check
from parity_tests.conftest import GOLDENS, ExportedPackage
from parity_tests.localize.onnx_graphs import _differences, _without_places, other_graph
from runtime_py.errors import MachineError
from runtime_py.package.conftest import edit

CASE = GOLDENS / "wemm"
Change = Callable[[onnx.GraphProto], None]


def attention(graph: onnx.GraphProto) -> onnx.NodeProto:
    return next(node for node in graph.node if node.op_type == "GroupQueryAttention")


def window(graph: onnx.GraphProto) -> None:
    attention(graph).attribute.append(helper.make_attribute("local_window_size", 512))


def softcap(graph: onnx.GraphProto) -> None:
    attention(graph).attribute.append(helper.make_attribute("softcap", 1e6))


def frequency(graph: onnx.GraphProto) -> None:
    tensor = next(each for each in graph.initializer if each.raw_data and each.data_type == onnx.TensorProto.FLOAT)
    value = numpy_helper.to_array(tensor).copy()
    value.flat[-1] *= np.float32(1 + 1e-6)
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def changed(package: Path, file: str, change: Change) -> None:
    path = package / file
    model = onnx.load(str(path), load_external_data=False)
    change(model.graph)
    onnx.save(model, str(path))
    edit(package, lambda manifest: None)


def test_what_no_short_question_shows_is_named(copied: ExportedPackage) -> None:
    package = copied("wemm", "cpu", "fp32")
    changed(package, "onnx/decoder_model_merged.onnx", window)
    judged = check(package, CASE, CheckOptions(steps=2, rebuild=True)).judgement
    assert judged.first_failure.startswith("graph: graph (stage decoder)")
    assert judged.run.divergence is not None
    assert "(GroupQueryAttention) has local_window_size 512, not None" in judged.run.divergence.note


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (softcap, "(GroupQueryAttention) has softcap 1000000.0, not None"),
        (frequency, "constant or weight "),
        (lambda graph: graph.node.pop(), " is missing"),
        (lambda graph: attention(graph).input.reverse(), " reads ["),
        (lambda graph: graph.output.pop(), "its outputs"),
    ],
)
def test_the_first_difference_is_told(exported: ExportedPackage, change: Change, words: str) -> None:
    path = exported("wemm", "cpu", "fp32") / "onnx" / "decoder_model_merged.onnx"
    own, right = (_without_places(onnx.load(str(path), load_external_data=False)) for _ in range(2))
    assert not list(_differences(own, right))
    change(own.graph)
    assert words in next(_differences(own, right))


@pytest.mark.slow
def test_untouched_graphs_are_the_same(copied: ExportedPackage) -> None:
    assert check(copied("wemm", "cpu", "int4"), CASE, CheckOptions(steps=2, rebuild=True)).verdict == "pass"


def test_other_versions_are_said(copied: ExportedPackage) -> None:
    package = copied("wemm", "cpu", "fp32")
    edit(package, lambda manifest: manifest["tools"].update(torch="1.0"))
    with pytest.raises(MachineError, match="cannot be traced anew: here is torch "):
        check(package, CASE, CheckOptions(steps=2, rebuild=True))


@pytest.mark.slow
def test_the_second_decoder_is_traced_too(tmp_path: Path) -> None:
    from export.pipeline import export
    from export.request import ExportRequest
    from parity_tests.check.candidate import open_candidate
    from parity_tests.reference.checkpoint_side import open_checkpoint

    asked = {"prefill_precision": "int8"}
    request = ExportRequest("omnilmm-12b", "cpu", "demo", "int4", tmp_path / "package", options=asked, skip_verify=True)
    package = export(request, None)
    candidate, spec = open_candidate(package), open_checkpoint(CASE.parents[2] / "export/demo/checkpoints/omnilmm-12b").spec
    candidate.backend.close()
    file = candidate.block["many_rows"]["file"]
    assert other_graph(candidate, spec) is None
    changed(package, file, window)
    found = other_graph(candidate, spec)
    assert found is not None and found[1].startswith(file)
