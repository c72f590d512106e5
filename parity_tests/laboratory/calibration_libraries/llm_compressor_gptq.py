"""llm-compressor's GPTQ and observers, one layer at a time (llmcompressor/modifiers/gptq/gptq_quantize.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parity_tests.laboratory.calibration_libraries.problem import Captured

if TYPE_CHECKING:
    from torch import Tensor

DISTRIBUTION = "llmcompressor"
INSTALL = (
    "pip install --no-deps llmcompressor compressed-tensors loguru and pip install datasets accelerate requests "
    "(its torch pin is older)"
)


def gptq(layer: Captured) -> Tensor:
    """Its default: static activation order, scales of the default weight observer."""
    import torch
    from compressed_tensors.quantization import ActivationOrdering, QuantizationArgs, QuantizationStrategy
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
    from llmcompressor.modifiers.gptq.helpers import accumulate_hessian, make_empty_hessian
    from llmcompressor.observers import Observer

    scheme = QuantizationArgs(
        num_bits=4, symmetric=True, strategy=QuantizationStrategy.GROUP, group_size=layer.block,
        actorder=ActivationOrdering.STATIC, observer="memoryless_minmax",
    )  # fmt: skip
    linear = layer.linear()
    observer = Observer.load_from_registry(scheme.observer, base_name="weight", args=scheme, module=linear)
    with torch.no_grad():
        hessian, seen = make_empty_hessian(linear), torch.zeros(())
        for rows in layer.inputs:
            hessian, seen = accumulate_hessian(rows[None], linear, hessian, seen)
        observer(linear.weight)
        parameters = observer.get_qparams()
        scale, zero = parameters["scale"], parameters["zero_point"]
        weight: Tensor = quantize_weight(
            linear.weight.data[None].clone(), (hessian / seen)[None], scale[None], zero[None], None, scheme
        )[0][0]
    return weight


METHODS = {"llm-compressor GPTQ": gptq}
