"""Training rounds to the grid that packages store."""

from __future__ import annotations

import pytest
import torch

from export.demo.quantisation import LANGUAGE_ROLES, matrices, mlc_rounded, on_grid, straight_through
from export.quantisation.spec import LayerShape


def test_training_rounds_as_the_package_does_but_for_half_precision_ties() -> None:
    weight = torch.randn(64, 336, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    trained, stored = mlc_rounded(weight), on_grid("q4f16_1")(weight)
    assert trained.shape == stored.shape == weight.shape
    step = weight.abs().max() / 7
    differing = (trained - stored).abs() > 0.01 * step
    assert differing.float().mean() < 0.01
    assert (trained - weight).abs().max() <= 0.51 * step


def test_a_tail_group_and_a_zero_group_are_rounded() -> None:
    weight = torch.zeros(2, 40)
    weight[0, 39] = 0.5
    assert torch.allclose(mlc_rounded(weight), weight, atol=1e-3)


def test_gradients_pass_straight_through() -> None:
    weight = torch.randn(4, 32, requires_grad=True)
    factors = torch.randn(4, 32)
    rounded = straight_through(weight)
    torch.testing.assert_close(rounded.detach(), mlc_rounded(weight.detach()))
    (rounded * factors).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, factors)


def test_layers_are_chosen_by_role() -> None:
    layers = [LayerShape("decoder.head", "head", 3, 4), LayerShape("vision_encoder.blocks.0.mlp.fc1", "vision", 3, 4)]
    assert matrices(layers, LANGUAGE_ROLES) == {"decoder.head.weight"}


def test_an_unknown_grid_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        on_grid("q5f16_1")
