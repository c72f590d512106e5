"""What PyTorch's exporter gives with the work left out that it repeats is what it gives without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.onnx._internal.exporter import _registration

from export.graphs.exporter_shortcuts import known_results


class Mixed(nn.Module):
    """Adds integers to floats and takes a mean of integers, so that arguments and results are cast."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, values: Tensor, numbers: Tensor) -> Tensor:
        return self.layer(values + numbers) * torch.rsqrt(numbers.sum(-1, keepdim=True)) + torch.true_divide(numbers, 3)


def exported() -> bytes:
    program = torch.export.export(Mixed(), (torch.ones(2, 4), torch.ones(2, 4, dtype=torch.int64)))
    made = torch.onnx.export(program, dynamo=True, optimize=False, opset_version=21, verbose=False)
    assert made is not None
    content: bytes = made.model_proto.SerializeToString(deterministic=True)
    return content


def test_the_bytes_are_the_same_and_functions_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    asked, ask = list[object](), _registration.onnxscript_apis.get_torchlib_ops

    def noted() -> object:
        asked.append(ask())
        return asked[-1]

    monkeypatch.setattr(_registration.onnxscript_apis, "get_torchlib_ops", noted)
    method = vars(_registration.ONNXRegistry)["from_torchlib"]
    state = torch.get_rng_state()
    plain = exported()
    assert b"Cast" in plain
    asked.clear()
    for _ in range(2):
        torch.set_rng_state(state)
        with known_results():
            assert exported() == plain
    assert len(asked) <= 1
    assert vars(_registration.ONNXRegistry)["from_torchlib"] is method
