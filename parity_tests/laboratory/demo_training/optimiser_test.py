"""Muon makes updates orthogonal and minimises."""

from __future__ import annotations

import pytest
import torch

from parity_tests.laboratory.demo_training.optimiser import Muon, orthogonal


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 8, 40), (3, 40, 8)])
def test_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert float(values.min()) > 0.3
    assert float(values.max()) < 1.3


def test_a_convolution_and_a_matrix_reach_their_targets() -> None:
    generator = torch.Generator().manual_seed(2)
    targets = [torch.randn(8, 3, 2, 2, generator=generator), torch.randn(16, 8, generator=generator)]
    parameters = [torch.zeros_like(target).requires_grad_() for target in targets]
    optimiser = Muon(parameters, lr=0.3, weight_decay=0.0)
    for step in range(200):
        optimiser.param_groups[0]["lr"] = 0.3 * (1 - step / 200) ** 2
        optimiser.zero_grad()
        torch.stack([((f - t) ** 2).sum() for f, t in zip(parameters, targets, strict=True)]).sum().backward()
        optimiser.step()
    assert all(float((f.detach() - t).abs().max()) < 0.1 for f, t in zip(parameters, targets, strict=True))
