"""Four bits of a cache as ONNX Runtime's operator rounds to them, and constants that are chosen from samples."""

from __future__ import annotations

import numpy as np
import torch

from parity_tests.laboratory.attention_rows import LARGEST, STEPS, WIDTH, Filled, Shape, session
from parity_tests.laboratory.cache_int4 import BLOCK, FOUR, Grid, by_error, by_largest, hadamard, in_blocks

SHAPE = Shape(heads=2, kv_heads=2, past=3, threads=1, sequences=1, operators=1, scale=1.0, rows=(2,))


def drawn(tokens: int = 200) -> torch.Tensor:
    """(2, tokens, 64), channels of unlike sizes, and off zero."""
    draw = torch.Generator().manual_seed(0)
    sizes = torch.rand(2, 1, 64, generator=draw) + 0.1
    return sizes * (torch.randn(2, tokens, 64, generator=draw) + 4 * torch.rand(2, 1, 64, generator=draw))


def error(rounding: Grid, x: torch.Tensor) -> float:
    return float((rounding(x[None])[0] - x).square().mean())


def test_the_operator_rounds_as_the_reference_does() -> None:
    filled = Filled.drawn(SHAPE, "int4", np.random.default_rng(0))
    key = filled.fed[1]
    key[0, 0, :4] = np.array([0.5, 1.5, -99, 99]) * STEPS["int4"]
    opened = session(SHAPE, "int4")
    binding, _ = filled.bound(opened, SHAPE, 2)
    opened.run_with_iobinding(binding)
    packed = filled.cache[0][0, :, SHAPE.past :]
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(2, 2, WIDTH).astype(np.int64) - 8
    scale = torch.full((2, 1, WIDTH), float(STEPS["int4"]))
    grid = Grid(FOUR, scale, torch.zeros(1), torch.eye(WIDTH))
    kept = grid(torch.from_numpy(key).unflatten(2, (2, WIDTH)).transpose(1, 2))[0]
    assert codes[0, 0, :4].tolist() == [0, 2, -8, LARGEST["int4"]]
    np.testing.assert_allclose(codes * STEPS["int4"], kept, rtol=1e-6)


def test_less_is_lost_with_every_freedom() -> None:
    x = drawn()
    largest = error(by_largest(x.abs().amax(1), FOUR), x)
    paired = error(by_error(x, torch.eye(64), pairs=True), x)
    plain, centred = (error(by_error(x, torch.eye(64), offsets), x) for offsets in (False, True))
    assert 0 < 2 * centred < plain < min(paired, largest)


def test_turned_heads_come_back() -> None:
    mixed = hadamard(64)
    torch.testing.assert_close(mixed @ mixed.T, torch.eye(64))
    x = drawn()
    grid = by_error(x, mixed)
    assert error(grid, x) < 0.02 * float(x.square().mean())


def test_a_block_keeps_its_largest_number() -> None:
    x = drawn(4)[None]
    before, after = (each.unflatten(-1, (-1, BLOCK)) for each in (x, in_blocks(x)))
    largest = before.abs().argmax(-1, keepdim=True)
    torch.testing.assert_close(after.gather(-1, largest), before.gather(-1, largest))
    assert not in_blocks(torch.zeros(1, 2, 3, 64)).any()
