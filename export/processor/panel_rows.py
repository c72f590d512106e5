"""What lies between the products of a vision tower: patches of a picture, positions, norms, and the rounding of inputs.

Every token is a lane, so each kernel goes through the channels of a panel; panels are shared among cores.
"""

# mypy: ignore-errors
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from tvm import tirx
from tvm.script import tirx as T

from export.processor.panel_product import FOUR
from export.processor.token_panels import (
    LEAST,
    PANEL,
    VECTORS,
    as_float,
    at,
    block,
    every,
    got,
    kept,
    nearest,
    panel_kernel,
    put,
    registers,
    spread,
)
from export.processor.vectors import Index

COLOURS = 3

Fill: TypeAlias = "Callable[[Callable[[Index], tirx.Expr]], None]"
"""Writes a token's channels, each of which a function gives."""


def patches(side: int, first: int) -> tirx.PrimFunc:
    """Squares of a picture, row by row, as tokens from the number ``first`` on; zeros for those that are none.

    Arguments: pixels float32 (COLOURS, height, width), out float32 (panels, COLOURS * side * side, PANEL).
    """
    channels = COLOURS * side * side
    shapes = {"pixels": ("float32", (COLOURS, "height", "width")), "out": ("float32", ("panels", channels, PANEL))}

    def write(arrays: Mapping[str, tirx.Buffer]) -> None:
        columns, rows = T.Cast("int32", arrays["width"]) // side, T.Cast("int32", arrays["height"]) // side
        with T.parallel(0, arrays["panels"]) as panel, T.serial(0, PANEL) as lane, block("patch"):
            number = T.Cast("int32", panel) * PANEL + lane - first
            place = T.sblock_alloc_buffer((2,), "int32")
            T.buffer_store(place, number // columns * side, [0])
            T.buffer_store(place, number % columns * side, [1])
            with T.If(T.And(number >= 0, number < rows * columns)):
                with T.Then(), T.grid(COLOURS, side, side) as (colour, row, column):
                    value = arrays["pixels"][colour, place[0] + row, place[1] + column]
                    T.buffer_store(arrays["out"], value, [panel, (colour * side + row) * side + column, lane])
                with T.Else(), T.serial(0, channels) as channel:
                    T.buffer_store(arrays["out"], T.float32(0), [panel, channel, lane])

    return panel_kernel(shapes, write)


def gathered(channels: int) -> tirx.PrimFunc:
    """Arguments: rows float32 (tokens, channels), out float32 (panels, channels, PANEL), zeros behind the last token."""
    shapes = {"rows": ("float32", ("tokens", channels)), "out": ("float32", ("panels", channels, PANEL))}

    def write(arrays: Mapping[str, tirx.Buffer]) -> None:
        _each_token(arrays, lambda number, fill: fill(lambda channel: arrays["rows"][number, channel]))

    return panel_kernel(shapes, write)


def positioned(width: int, class_token: bool) -> tirx.PrimFunc:
    """Embedded patches with their positions; where there is one, the token before them with its own.

    Arguments, float32: x (panels, width, PANEL), positions (tokens, width), where it is so class_token (1, width), and out
    (panels, width, PANEL), where tokens behind the last are zero.
    """
    panels = ("float32", ("panels", width, PANEL))
    special = {"class_token": ("float32", (1, width))} if class_token else {}
    shapes = {"x": panels, "positions": ("float32", ("tokens", width)), **special, "out": panels}

    def write(arrays: Mapping[str, tirx.Buffer]) -> None:
        def token(number: tirx.Expr, fill: Fill) -> None:
            place = lambda channel: arrays["positions"][number, channel]  # noqa: E731
            patch = lambda channel: arrays["x"][number // PANEL, channel, number % PANEL] + place(channel)  # noqa: E731
            if class_token:
                with T.If(number == 0):
                    with T.Then():
                        fill(lambda channel: arrays["class_token"][0, channel] + place(channel))
                    with T.Else():
                        fill(patch)
            else:
                fill(patch)

        _each_token(arrays, token)

    return panel_kernel(shapes, write)


def _each_token(arrays: Mapping[str, tirx.Buffer], write: Callable[[tirx.Expr, Fill], None]) -> None:
    """``write(number, fill)`` for each of "tokens", whose channels ``fill`` writes to "out"; zeros behind the last."""
    with T.parallel(0, arrays["panels"]) as panel, T.serial(0, PANEL) as lane, block("token"):
        number = T.Cast("int32", panel) * PANEL + lane

        def fill(value: Callable[[Index], tirx.Expr]) -> None:
            with T.serial(0, arrays["out"].shape[1]) as channel:
                T.buffer_store(arrays["out"], value(channel), [panel, channel, lane])

        with T.If(number >= T.Cast("int32", arrays["tokens"])):
            with T.Then():
                fill(lambda channel: T.float32(0))
            with T.Else():
                write(number, fill)


def tokens(width: int, first: int) -> tirx.PrimFunc:
    """Arguments: x float32 (panels, width, PANEL), out float32 (count, width), the tokens from ``first`` on."""
    shapes = {"x": ("float32", ("panels", width, PANEL)), "out": ("float32", ("count", width))}

    def write(arrays: Mapping[str, tirx.Buffer]) -> None:
        with T.parallel(0, arrays["count"]) as number, block("token"):
            lane = T.Cast("int32", number) + first
            with T.serial(0, width) as channel:
                T.buffer_store(arrays["out"], arrays["x"][lane // PANEL, channel, lane % PANEL], [number, channel])

    return panel_kernel(shapes, write)


def layer_norm(width: int, eps: float, addend: bool) -> tirx.PrimFunc:
    """(x - mean) / sqrt(variance + eps) * weight + bias, and ``addend`` more.

    Arguments, float32: x (panels, width, PANEL), weight, bias (width,), addend (panels, width, PANEL) where there is one,
    and out (panels, width, PANEL).
    """
    panels, row = ("float32", ("panels", width, PANEL)), ("float32", (width,))
    shapes = {"x": panels, "weight": row, "bias": row, **({"addend": panels} if addend else {}), "out": panels}

    def write(arrays: Mapping[str, tirx.Buffer]) -> None:
        with T.parallel(0, arrays["panels"]) as panel, block("panel"):
            x, mean, factor = arrays["x"], registers("float32", VECTORS), registers("float32", VECTORS)
            _sum(mean, width, lambda channel, vector: x[panel, channel, at(vector)])
            for vector in range(VECTORS):
                put(mean, got(mean, vector) * every(1 / width), vector)

            def square(channel: Index, vector: int) -> tirx.Expr:
                difference = x[panel, channel, at(vector)] - got(mean, vector)
                return difference * difference

            _sum(factor, width, square)
            for vector in range(VECTORS):
                put(factor, every(1.0) / T.sqrt(got(factor, vector) * every(1 / width) + every(eps)), vector)
            with T.serial(0, width) as channel:
                for vector in range(VECTORS):
                    value = (x[panel, channel, at(vector)] - got(mean, vector)) * got(factor, vector)
                    value = value * spread(arrays["weight"][channel]) + spread(arrays["bias"][channel])
                    if addend:
                        value = arrays["addend"][panel, channel, at(vector)] + value
                    T.buffer_store(arrays["out"], value, [panel, channel, at(vector)])

    return panel_kernel(shapes, write)


def rounded(width: int, highest: int, zero: int, finer: int = 0, finer_zero: int = 0) -> tirx.PrimFunc:
    """Codes from 0 to ``highest``, ``zero`` standing for 0, with the least scale of a token that holds all of it.

    Arguments: x float32 (panels, width, PANEL); codes int32 (panels, width / 4, PANEL), four channels each; scales float32
    (panels, PANEL); and for ``finer`` steps of one, left int32 (panels, width / 4, PANEL), the codes of what is left over,
    in which ``finer_zero`` stands for 0.
    """
    packed = ("int32", ("panels", width // FOUR, PANEL))
    shapes = {
        "x": ("float32", ("panels", width, PANEL)),
        "codes": packed,
        "scales": ("float32", ("panels", PANEL)),
        **({"left": packed} if finer else {}),
    }

    def write(arrays: Mapping[str, tirx.Buffer]) -> None:
        with T.parallel(0, arrays["panels"]) as panel, block("panel"):
            x, above, below = arrays["x"], registers("float32", VECTORS), registers("float32", VECTORS)
            for vector in range(VECTORS):
                put(above, x[panel, 0, at(vector)], vector)
                put(below, x[panel, 0, at(vector)], vector)
            with T.serial(1, width) as channel:
                for vector in range(VECTORS):
                    put(above, T.max(got(above, vector), x[panel, channel, at(vector)]), vector)
                    put(below, T.min(got(below, vector), x[panel, channel, at(vector)]), vector)
            for vector in range(VECTORS):
                scale = T.max(got(above, vector) * every(1 / (highest - zero)), got(below, vector) * every(-1 / zero))
                put(above, T.max(scale, every(LEAST)), vector)
                T.buffer_store(arrays["scales"], got(above, vector), [panel, at(vector)])
                put(below, every(1.0) / got(above, vector), vector)
            with T.serial(0, width // FOUR) as four, block("four"):
                for vector in range(VECTORS):
                    words = [spread(T.int32(0)), spread(T.int32(0))]
                    for side in range(FOUR):
                        value = kept(x[panel, four * FOUR + side, at(vector)] * got(below, vector))
                        step = nearest(value)
                        words[0] = _with_byte(words[0], step, zero, highest, side)
                        if finer:
                            left = nearest((value - as_float(step)) * every(finer))
                            words[1] = _with_byte(words[1], left, finer_zero, highest, side)
                    for name, word in zip(("codes", "left") if finer else ("codes",), words, strict=False):
                        T.buffer_store(arrays[name], word, [panel, four, at(vector)])

    return panel_kernel(shapes, write)


def _with_byte(word: tirx.Expr, step: tirx.Expr, zero: int, highest: int, side: int) -> tirx.Expr:
    code = T.max(T.min(step + spread(T.int32(zero)), spread(T.int32(highest))), spread(T.int32(0)))
    return T.bitwise_or(word, T.shift_left(code, spread(T.int32(8 * side))))


def _sum(total: tirx.Buffer, width: int, read) -> None:
    """Numbers of all channels together, lane by lane."""
    for vector in range(VECTORS):
        put(total, every(0.0), vector)
    with T.serial(0, width) as channel:
        for vector in range(VECTORS):
            put(total, got(total, vector) + read(channel, vector), vector)
