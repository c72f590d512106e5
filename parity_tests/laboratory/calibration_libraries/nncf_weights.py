"""NNCF's weight compression over OpenVINO, one layer at a time (nncf.compress_weights)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from parity_tests.laboratory.calibration_libraries.problem import Captured

if TYPE_CHECKING:
    from torch import Tensor

DISTRIBUTION = "nncf"
INSTALL = "pip install nncf openvino"


def compressed(layer: Captured, **options: bool) -> Tensor:
    """The weight as the compressed OpenVINO layer reads it: its product with the identity."""
    import nncf
    import numpy as np
    import openvino
    import torch

    made = openvino.convert_model(layer.linear(), example_input=layer.inputs[0][None])
    dataset: Any = nncf.Dataset([rows[None].numpy() for rows in layer.inputs])
    model = nncf.compress_weights(
        made, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=layer.block, ratio=1.0, all_layers=True, dataset=dataset,
        subset_size=len(layer.inputs), **options,
    )  # fmt: skip
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "INFERENCE_NUM_THREADS": "1"}
    run = openvino.Core().compile_model(model, "CPU", settings)
    identity = np.eye(layer.weight.shape[1], dtype=np.float32)[None]
    return torch.from_numpy(np.array(run(identity)[0])[0]).T


METHODS = {
    "NNCF": compressed,
    "NNCF scale estimation": partial(compressed, scale_estimation=True),
    "NNCF GPTQ": partial(compressed, gptq=True),
    "NNCF GPTQ, scale estimation": partial(compressed, gptq=True, scale_estimation=True),
}
