"""Kernels of vision towers beside float64 arithmetic, over panels that are full and that are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from export.processor import panel_attention, panel_product, panel_rows
from export.processor.conftest import drawn, of_processor
from export.processor.panel_product import PanelMatrix
from export.processor.rounded_heads import PanelHeads
from export.processor.token_panels import PANEL

ACTIVATIONS: dict[str, Any] = {
    "": lambda x: x,
    "gelu": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def erf(x: np.ndarray) -> np.ndarray:
    import torch

    return torch.erf(torch.from_numpy(x)).numpy()


def panels(rows: np.ndarray) -> np.ndarray:
    """(tokens, channels) as panels, with zeros behind the last token."""
    count = -(-len(rows) // PANEL)
    filled = np.zeros((count * PANEL, rows.shape[1]), rows.dtype)
    filled[: len(rows)] = rows
    return np.ascontiguousarray(filled.reshape(count, PANEL, -1).transpose(0, 2, 1))


def tokens(array: np.ndarray, count: int) -> np.ndarray:
    """The inverse."""
    return array.transpose(0, 2, 1).reshape(-1, array.shape[1])[:count]


def words(codes: np.ndarray) -> np.ndarray:
    """uint8 (tokens, channels) as panels of four channels each."""
    return panels(np.ascontiguousarray(codes).view(np.int32))


def unpacked(array: np.ndarray, count: int) -> np.ndarray:
    return np.ascontiguousarray(tokens(array, count)).view(np.uint8)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "columns", "count"), [(6, 4, 1), (64, 72, 64), (115, 128, 70)])
def test_a_product_of_bytes_is_exact_before_its_scales(rows: int, columns: int, count: int, activation: str) -> None:
    matrix = PanelMatrix(rows, columns, bias=True, addend=rows > 6, activation=activation)
    kernel = of_processor("v4", panel_product.byte_product, matrix, 64, 0.5)
    codes = np.random.default_rng(0).integers(0, 128, (count, columns), np.uint8)
    weights = np.random.default_rng(1).integers(-127, 128, (rows, columns), np.int8)
    scales, each, bias, addend = (np.abs(drawn(2, count)), np.abs(drawn(3, rows)), drawn(4, rows), drawn(5, count, rows))
    out = np.zeros_like(panels(addend))
    given = [np.ascontiguousarray(panels(scales[:, None])[:, 0]) / 400, weights, each / 20, bias]
    kernel(words(codes), *given, *([panels(addend)] if matrix.addend else []), out)
    exact = (codes.astype(np.int64) - 64) @ weights.T.astype(np.int64) * 0.5 * (scales[:, None] / 400) * (each / 20) + bias
    expected = ACTIVATIONS[activation](exact + addend if matrix.addend else exact)
    assert np.abs(tokens(out, count) - expected).max() < 2e-6 * max(1, np.abs(exact).max())


@pytest.mark.parametrize(("rows", "columns", "count"), [(7, 3, 65), (96, 588, 30)])
def test_a_product_of_float32(rows: int, columns: int, count: int) -> None:
    x, weight, bias = drawn(0, count, columns), drawn(1, rows, columns), drawn(2, rows)
    out = np.zeros((-(-count // PANEL), rows, PANEL), np.float32)
    of_processor("v4", panel_product.float_product, PanelMatrix(rows, columns, bias=True))(panels(x), weight, bias, out)
    expected = x.astype(np.float64) @ weight.T + bias
    assert np.abs(tokens(out, count) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("heads", "size", "count", "turned"),
    [(2, 16, 1, False), (1, 72, 64, False), (3, 10, 150, False), (2, 16, 1, True), (1, 80, 64, True), (3, 12, 150, True)],
)
def test_attention_sees_every_token_and_no_other(heads: int, size: int, count: int, turned: bool) -> None:
    shape = PanelHeads(heads, size, size**-0.5, turned)
    qkv, angles = drawn(0, count, 3 * shape.width), 3 * drawn(1, count, 1, size // 2).astype(np.float64)
    given, turns = panels(qkv), panels(np.concatenate([np.cos(angles), np.sin(angles)], 2)[:, 0].astype(np.float32))
    if count % PANEL:
        given[-1, :, count % PANEL :] = 1e4  # what lies behind the last token is of no account
    out = np.zeros((len(given), shape.width, PANEL), np.float32)
    of_processor("v4", panel_attention.panel_attention, shape)(given, *([turns] if turned else []), count, out)
    q, k, v = (part.reshape(count, heads, size).astype(np.float64) for part in np.split(qkv, 3, 1))
    if turned:
        q, k = (turn(each, angles) for each in (q, k))
    scores = np.einsum("qhd,khd->hqk", q, k) * shape.scale
    weights = np.exp(scores - scores.max(2, keepdims=True))
    expected = np.einsum("hqk,khd->qhd", weights / weights.sum(2, keepdims=True), v).reshape(count, -1)
    assert np.abs(tokens(out, count) - expected).max() < 5e-3 * np.abs(expected).max()


def turn(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    one, other = np.split(x, 2, 2)
    cosines, sines = np.cos(angles), np.sin(angles)
    return np.concatenate([one * cosines - other * sines, other * cosines + one * sines], 2)


@pytest.mark.parametrize("addend", [False, True])
def test_a_norm_of_tokens(addend: bool) -> None:
    x, weight, bias, more = drawn(0, 70, 48) * 3 + 2, drawn(1, 48), drawn(2, 48), drawn(3, 70, 48)
    out = np.zeros_like(panels(x))
    arrays = [panels(x), weight, bias, *([panels(more)] if addend else []), out]
    of_processor("v4", panel_rows.layer_norm, 48, 1e-6, addend)(*arrays)
    wide = x.astype(np.float64)
    normed = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-6) * weight + bias
    assert np.abs(tokens(out, 70) - (normed + more if addend else normed)).max() < 1e-5


@pytest.mark.parametrize("zero", [64, 16])
def test_codes_hold_a_token_and_what_is_left_of_it(zero: int) -> None:
    x = drawn(0, 70, 20)
    x[3] = 0
    x[4] = np.maximum(x[4], -0.1)
    arrays = [
        panels(x),
        np.zeros((2, 5, PANEL), np.int32),
        np.zeros((2, PANEL), np.float32),
        np.zeros((2, 5, PANEL), np.int32),
    ]
    of_processor("v4", panel_rows.rounded, 20, 127, zero, 126, 64)(*arrays)
    codes, left = (unpacked(arrays[at], 70).astype(np.float64) for at in (1, 3))
    scales = tokens(arrays[2][:, None], 70)[:, 0]
    assert codes.max() <= 127 and np.allclose(
        scales[x.any(1)], np.maximum(x.max(1) / (127 - zero), -x.min(1) / zero)[x.any(1)]
    )
    once = (codes - zero) * scales[:, None]
    assert (np.abs(once - x) <= scales[:, None] * 0.5001).all()
    assert (np.abs(once + (left - 64) * scales[:, None] / 126 - x) <= scales[:, None] * 0.005).all()


@pytest.mark.parametrize("class_token", [False, True])
def test_a_picture_goes_in_by_patches_and_comes_out_by_tokens(class_token: bool) -> None:
    first, pixels = int(class_token), drawn(0, 3, 15, 27)
    cut = pixels.reshape(3, 5, 3, 9, 3).transpose(1, 3, 0, 2, 4).reshape(45, 27)
    place = np.ones((1, 27, PANEL), np.float32)
    of_processor("v4", panel_rows.patches, 3, first)(pixels, place)
    assert np.array_equal(tokens(place, 45 + first)[first:], cut) and not tokens(place, PANEL)[45 + first :].any()
    positions, special, out = drawn(1, 45 + first, 27), drawn(2, 1, 27), np.ones_like(place)
    of_processor("v4", panel_rows.positioned, 27, class_token)(place, positions, *([special] if class_token else []), out)
    every = np.concatenate([*([special] if class_token else []), cut]) + positions
    assert np.array_equal(tokens(out, 45 + first), every) and not tokens(out, PANEL)[45 + first :].any()
    rows = np.zeros((45, 27), np.float32)
    of_processor("v4", panel_rows.tokens, 27, first)(out, rows)
    assert np.array_equal(rows, every[first:])


@pytest.mark.parametrize("count", [64, 70])
def test_rows_go_into_panels(count: int) -> None:
    rows = drawn(0, count, 12)
    out = np.ones_like(panels(rows))
    of_processor("v4", panel_rows.gathered, 12)(rows, out)
    assert np.array_equal(out, panels(rows))
