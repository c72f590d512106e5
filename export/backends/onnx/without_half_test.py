"""The layout for GPUs whose shaders have no float16: nothing is computed in it once weights are widened at load."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from export.backends.onnx.conftest import Package, export

NO_HALF = {"cache": "float32", "embed_precision": "fp32"}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return export("minicpm-v", "int4", tmp_path_factory.mktemp("without-half"), **NO_HALF)


def test_float16_is_stored_and_widened_and_nothing_else(package: Package) -> None:
    """What only weights go into is computed once, at load, by ONNX Runtime's processor kernels."""
    graphs = sorted((package.folder / "onnx").glob("*.onnx"))
    assert "decoder_model_merged_q4.onnx" in {path.name for path in graphs}
    for path in graphs:
        model = onnx.load(str(path), load_external_data=False)
        assert not computed_in_half(model), path.name


def test_the_ordinary_layout_computes_in_float16(tmp_path: Path) -> None:
    package = export("minicpm-v", "int4", tmp_path)
    halves = {path.name for path in (package.folder / "onnx").glob("*.onnx") if computed_in_half(onnx.load(str(path)))}
    assert {"decoder_model_merged_q4f16.onnx", "embed_tokens_int8.onnx"} <= halves


def computed_in_half(model: onnx.ModelProto) -> set[str]:
    """float16 values of a graph that are no stored tensor: inputs, outputs, and what nodes make."""
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    half = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    return half - {tensor.name for tensor in model.graph.initializer}
