"""Muon in float32: momentum whose matrix is made orthogonal before the step, which trains small transformers in fewer steps.

Source of the method: KellerJordan/Muon, muon.py (coefficients, five Newton-Schulz iterations, Nesterov momentum);
step size matched to AdamW's as in MoonshotAI/Moonlight. torch.optim.Muon iterates in bfloat16, which is slow on CPUs
without bfloat16 units.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """For matrices of hidden layers, a convolution being (outputs, the rest); weights decay as in AdamW."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault((parameter.shape[0], parameter[0].numel()), []).append(parameter)
            for shape, parameters in by_shape.items():
                updates = torch.stack([self._momentum(p, group["momentum"]).view(shape) for p in parameters])
                size = 0.2 * max(shape) ** 0.5
                for parameter, update in zip(parameters, orthogonal(updates), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(update.view_as(parameter), alpha=group["lr"] * size)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if "buffer" not in state:
            state["buffer"] = torch.zeros_like(parameter)
        state["buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["buffer"], momentum)


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Each of (batch, rows, columns) with its singular values brought near one."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
