"""Patches of a picture in the upper left corner of a larger square are those of the picture."""

from __future__ import annotations

import numpy as np
import pytest
from tvm.relax.frontend import nn

from export.backends.mlc.blocks.conftest import build
from export.backends.mlc.blocks.rotary_vision import cut_merge_patches
from export.backends.mlc.blocks.vision import cut_patches

SIDE, MARGIN, PATCH = 24, 3, 6
STATISTICS = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


class Cutter(nn.Module):
    """Both ways to cut a square into patches."""

    def plain(self, image: nn.Tensor) -> nn.Tensor:
        return cut_patches(image, SIDE // PATCH, SIDE // PATCH, PATCH, "float32", STATISTICS)

    def merged(self, image: nn.Tensor) -> nn.Tensor:
        return cut_merge_patches(image, SIDE // PATCH, SIDE // PATCH, PATCH, 2, STATISTICS, "float32")


@pytest.mark.parametrize("name", ["plain", "merged"])
def test_a_margin_changes_nothing(name: str, rng: np.random.Generator) -> None:
    cutter = Cutter()
    square = rng.integers(0, 256, (1, SIDE + MARGIN, SIDE + MARGIN, 3), np.uint8)
    picture = np.ascontiguousarray(square[:, :SIDE, :SIDE])
    cut = []
    for image in (square, picture):
        spec = {"image": nn.spec.Tensor(list(image.shape), "uint8")}
        cut.append(build(cutter, {name: (getattr(cutter, name), spec)}, {})(name, image))
    assert np.array_equal(*cut)
    assert np.ptp(cut[0]) > 1.0
