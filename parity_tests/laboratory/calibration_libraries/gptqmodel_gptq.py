"""GPTQModel's GPTQ, one layer at a time (gptqmodel/quantization/gptq.py, class GPTQ)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parity_tests.laboratory.calibration_libraries.problem import Captured

if TYPE_CHECKING:
    from torch import Tensor

DISTRIBUTION = "gptqmodel"
INSTALL = (
    "pip install -U setuptools, then BUILD_CUDA_EXT=0 pip install --no-build-isolation gptqmodel torch==2.13.0 "
    "(pip takes 7.6.0; for a later one, add it with --no-deps)"
)


def default(layer: Captured) -> Tensor:
    """Its defaults: the order keeps groups together."""
    return _quantised(layer, desc_act=False, static=False)


def ordered(layer: Captured) -> Tensor:
    """Activation order with static groups, as ours."""
    return _quantised(layer, desc_act=True, static=True)


def _quantised(layer: Captured, desc_act: bool, static: bool) -> Tensor:
    import torch
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    options = {"static_groups": True, "act_group_aware": False} if static else {}
    linear = layer.linear()
    task = GPTQ(linear, QuantizeConfig(bits=4, group_size=layer.block, sym=True, desc_act=desc_act, **options))
    task.quantizer.configure(perchannel=True)
    with torch.no_grad():
        for index, rows in enumerate(layer.inputs):
            task.add_batch(rows[None], linear(rows[None]), batch_index=index)
        weight: Tensor = task.quantize()[0]
    return weight


METHODS = {"GPTQModel": default, "GPTQModel, static groups": ordered}
