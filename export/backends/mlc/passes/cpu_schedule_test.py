"""What operators are written as for a processor."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import tirx
from tvm.ir import IRModule
from tvm.relax.frontend import nn
from tvm.target import Target

from export.backends.mlc.library import TARGETS
from export.backends.mlc.passes.cpu_schedule import OPERATORS
from export.compilation.pipeline import lowered


class Gate(nn.Module):
    def forward(self, gate: nn.Tensor, up: nn.Tensor) -> nn.Tensor:
        return nn.op.silu(gate) * up


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_gate_is_one_kernel_that_calls_no_library(dtype: str) -> None:
    kind = nn.spec.Tensor((1, "n", 256), dtype)
    module, _ = Gate().export_tvm(spec={"forward": {"gate": kind, "up": kind}})
    functions = (each for _, each in lowered({}, OPERATORS)(module).functions_items() if isinstance(each, tirx.PrimFunc))
    (function,) = functions
    assert "exp(" not in function.script() and "sigmoid" not in function.script()
    compiled = tvm.compile(IRModule({"gate": function.with_attr("global_symbol", "gate")}), target=Target(TARGETS["x86_64"]))
    gate = np.linspace(-120, 120, 512).reshape(1, 2, 256).astype(dtype)
    up = np.random.default_rng(0).standard_normal(gate.shape).astype(dtype)
    out = tvm.runtime.tensor(np.zeros_like(gate))
    compiled["gate"](tvm.runtime.tensor(gate), tvm.runtime.tensor(up), out)
    expected = gate / (1 + np.exp(-gate.astype(np.float64))) * up
    bound = 1e-6 if dtype == "float32" else 2e-3
    assert (np.abs(out.numpy() - expected) <= bound * np.abs(expected) + 1e-7).all()
