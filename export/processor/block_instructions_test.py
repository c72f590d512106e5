"""What a variant's instructions say of memory: codes are asked for early, and no product has other bits for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm.target import Target

from export.processor.block_instructions import block_instructions
from export.processor.block_product import BlockMatrix, block_product
from export.processor.block_product_test import drawn, variants
from export.processor.conftest import compiled
from export.processor.targets import TARGETS

MATRICES = [
    BlockMatrix(70, 2304, 32, 4),
    BlockMatrix(35, 576, 64, 4),
    BlockMatrix(7, 96, 32, 4),
    BlockMatrix(70, 1536, 32, 8),
]
INTO_THE_FIRST = "prefetcht0"


@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_codes_are_asked_into_the_first_cache_and_products_keep_their_bits(variant: str, matrix: BlockMatrix) -> None:
    target, given = Target(TARGETS[variant]), drawn(matrix)
    own = block_instructions(target)
    assert own is not None
    assert own.near, "nothing of what this is about"
    libraries = [compiled(block_product(matrix, each), TARGETS[variant]) for each in (own, replace(own, near=0))]
    asked = [INTO_THE_FIRST in library.mod.inspect_source("asm") for library in libraries]
    assert asked == [True, False]
    codes, scales = (tvm.runtime.tensor(array) for array in (given.codes, given.scales))
    for count in (1, 2, 4, 5):
        x = np.random.default_rng(count).standard_normal((count, matrix.columns)).astype(np.float32)
        products = []
        for library in libraries:
            out = tvm.runtime.tensor(np.full((count, matrix.rows), 7, np.float32))
            library["kernel"](tvm.runtime.tensor(x), codes, scales, out)
            products.append(out.numpy().tobytes())
        assert products[0] == products[1], f"{count} rows"
