"""Build one Relax block for x86, load it with a PyTorch module's weights, and call both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.relax.frontend import nn
from tvm.target import Target

from export.backends.mlc.passes.pipeline import pipeline

TARGET = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"}


class Built:
    """A compiled block; call it with NumPy arrays (or objects) and get NumPy arrays."""

    def __init__(self, machine: Any, parameters: list[Any]) -> None:
        self.machine, self.parameters = machine, parameters

    def __call__(self, name: str, *arguments: Any, parameters: bool = True) -> Any:
        values = [tvm.runtime.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
        result = self.machine[name](*values, *([self.parameters] if parameters else []))
        return result.numpy() if hasattr(result, "numpy") else result


Methods = Mapping[str, tuple[Callable, dict[str, Any]]]
"""Function name to its method and argument specs; one whose name starts with ``create`` takes no parameters."""


def build(module: nn.Module, methods: Methods, weights: Mapping[str, np.ndarray]) -> Built:
    """Compile ``methods`` of ``module``; ``weights`` by parameter name, none missing and none left over."""
    specs = []
    for name, (method, arguments) in methods.items():
        mode = "none" if name.startswith("create") else "packed"
        specs.append(nn.spec.MethodSpec(method, list(arguments), list(arguments.values()), mode, "none"))
    target = Target(TARGET)
    with target:
        mod, named = module.export_tvm(spec=nn.spec.ModuleSpec(module, list(methods), specs))
    for name, parameter in named:
        assert tuple(int(size) for size in parameter.shape) == weights[name].shape, name
    assert {name for name, _ in named} == set(weights)
    with target, tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
        built = relax.build(mod, target=target, relax_pipeline=pipeline(target, target, {"seq_len": 64}, {}))
    machine = relax.VirtualMachine(built, tvm.cpu())
    return Built(machine, [tvm.runtime.tensor(np.ascontiguousarray(weights[name])) for name, _ in named])


def random_weights(module: torch.nn.Module, seed: int = 0) -> dict[str, np.ndarray]:
    """Fill a PyTorch module and return its parameters by name."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        scale = 0.3 if parameter.ndim > 1 else 1.0
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + (name.endswith("norm.weight")))
    return {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}


def assert_close(actual: np.ndarray, expected: torch.Tensor | np.ndarray, bound: float = 5e-6) -> None:
    """Largest difference relative to the largest expected value."""
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= bound * np.abs(expected).max()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)
