"""onnxruntime's MatMulNBits quantisers (onnxruntime/quantization/matmul_nbits_quantizer.py)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from parity_tests.laboratory.calibration_libraries.problem import Captured

if TYPE_CHECKING:
    from torch import Tensor

DISTRIBUTION = "onnxruntime"
INSTALL = "pip install onnxruntime onnx"


def quantised(name: str, layer: Captured) -> Tensor:
    """The weight as one MatMulNBits of onnxruntime's quantiser reads it: its product with the identity."""
    import numpy as np
    import onnxruntime
    import torch
    from onnxruntime.quantization import matmul_nbits_quantizer as quantizers
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    weight, rows, block = layer.weight, layer.rows().numpy(), layer.block

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"x": rows}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

        def rewind(self) -> None:
            self.left = [{"x": rows}]

    chosen = {
        "ORT default": lambda: None,
        "ORT HQQ": lambda: quantizers.HQQWeightOnlyQuantConfig(block_size=block, bits=4),
        "ORT k-quant": quantizers.KQuantWeightOnlyQuantConfig,
        "ORT GPTQ": lambda: quantizers.GPTQWeightOnlyQuantConfig(
            calibration_data_reader=Reader(), block_size=block, perchannel=True
        ),
    }[name]()
    quantizer = quantizers.MatMulNBitsQuantizer(
        _one_matmul(weight), block_size=block, is_symmetric=True, accuracy_level=0, algo_config=chosen
    )
    quantizer.process()
    content = quantizer.model.model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": np.eye(weight.shape[1], dtype=np.float32)})[0]).T


def _one_matmul(weight: Tensor) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    stored = numpy_helper.from_array(weight.T.contiguous().numpy(), "w")
    fed = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight.shape[1]])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[0]])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="matmul")], "g", [fed], [made], [stored])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


METHODS = {name: partial(quantised, name) for name in ("ORT default", "ORT HQQ", "ORT k-quant", "ORT GPTQ")}
