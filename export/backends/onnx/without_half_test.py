"""The layout for GPUs whose shaders have no float16: nothing is computed in it once weights are widened at load."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto

from export.backends.onnx.conftest import export
from runtime_py.contracts import DECODER, EMBED


def test_float16_is_stored_and_widened_and_nothing_else(tmp_path: Path, default_decoder: Path) -> None:
    """What only weights go into is computed once, at load, by ONNX Runtime's processor kernels."""
    package = export("minicpm-v", "int4", tmp_path, (EMBED, DECODER), cache="float32", embed_precision="fp32")
    graphs = sorted((package.folder / "onnx").glob("*.onnx"))
    assert {"decoder_model_merged_q4.onnx", "embed_tokens.onnx"} <= {path.name for path in graphs}
    for path in graphs:
        assert not computed_in_half(onnx.load(str(path), load_external_data=False)), path.name
    assert computed_in_half(onnx.load(str(default_decoder), load_external_data=False))


def computed_in_half(model: onnx.ModelProto) -> set[str]:
    """float16 values of a graph that are no stored tensor: inputs, outputs, and what nodes make."""
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    half = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    return half - {tensor.name for tensor in model.graph.initializer}
