"""What a cache of four bits would do to a decoder: how far what it says is from float32, by how its numbers are rounded.

    python -m parity_tests.laboratory.cache_int4 --package PACKAGE --checkpoint FOLDER [--text FILE] [--windows 4]
        [--tokens 192] [--samples 10]

Reads a text, each window of it from nothing, through the checkpoint in float32 and through the codes of an int4 package that
no calibration made, in float32, with keys and values as they are and rounded as samples of the set ``machine`` choose it.
GroupQueryAttention takes one scale a channel (microsoft/onnxruntime, docs/ContribOperators.md, ``kv_cache_bit_width`` 4);
offsets, turned heads, blocks, and other bits for keys than for values are what it does not have.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from calibrate.request import CalibrationRequest
from calibrate.run import plan
from calibrate.samples.prompts import prompts_of
from export.modules.cache_kernels import LayerAttention, pair_lengths
from export.modules.kernels import CachedAttention, Kernels
from export.quantisation.codes import WeightProvider
from export.specs import DecoderSpec
from parity_tests.laboratory.cache_distance import CodesRead
from parity_tests.laboratory.text_distance import reading_flags
from parity_tests.reference.arithmetic import Arithmetic, ArithmeticKernels
from parity_tests.reference.checkpoint_side import Checkpoint
from parity_tests.reference.reference import TorchBackend
from runtime_py.command import flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode
from runtime_py.generation.session import Limits, Session

FOUR, EIGHT = 4, 8
SHARES = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1)
"""Of the largest number, that the last step of a scale reaches."""

BLOCK = 32
"""Channels of a position that share a scale of their own, where scales are no constants (llama.cpp, ggml, Q4_0)."""

Rounding = Callable[[Tensor], Tensor]
"""(batch, kv_heads, tokens, head_dim) to the same, rounded."""

Layer = tuple[Rounding, Rounding]
"""What keys and what values of a layer go through."""

Layers = Callable[[str], Layer]
"""Of an attention by its name, ``decoder.layers.0.attention.attend``."""


@dataclass(frozen=True)
class Grid:
    """Rounding by constants: ``scale`` and ``offset`` (kv_heads, 1, head_dim), in channels that ``turn`` has mixed."""

    bits: int
    scale: Tensor
    offset: Tensor
    turn: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return coded(x @ self.turn, self.scale, self.offset, self.bits) @ self.turn.T


def coded(x: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
    """To integers of so many bits and back; ties go to the even one, what is beyond is cut."""
    largest = 2 ** (bits - 1) - 1
    return ((x - offset) / scale).round().clamp(-largest - 1, largest) * scale + offset


def by_largest(sizes: Tensor, bits: int) -> Grid:
    """A scale that just holds ``sizes`` (kv_heads, head_dim): over 127 as a package has it, over 7.5 with four bits."""
    steps = 127 if bits == EIGHT else 2 ** (bits - 1) - 0.5
    return Grid(bits, sizes[:, None] / steps, torch.zeros(1), torch.eye(sizes.shape[-1]))


def by_error(seen: Tensor, turn: Tensor, offsets: bool = False, pairs: bool = False) -> Grid:
    """The least squared error over ``seen`` (kv_heads, tokens, head_dim), channel by channel.

    Args:
        turn: orthogonal (head_dim, head_dim), that heads are multiplied with.
        offsets: whether a constant may be taken off first, which attention over keys does not see and its output has again.
        pairs: whether channels that turn together with positions share a scale, as every position may have them.
    """
    turned = seen @ turn
    middle, half = torch.zeros(turned.shape[0], 1, turned.shape[2]), turned.abs().amax(1, keepdim=True)
    centres = [middle]
    if offsets:
        low, high, mean = turned.amin(1, keepdim=True), turned.amax(1, keepdim=True), turned.mean(1, keepdim=True)
        middle, half = (low + high) / 2, (high - low) / 2
        centres = [middle, mean, (middle + mean) / 2]
    if pairs:
        half = torch.maximum(half, half.roll(half.shape[2] // 2, 2))
    best = torch.full_like(middle, torch.inf)
    scale, offset = torch.ones_like(middle), torch.zeros_like(middle)
    for share in SHARES:
        step = share * half.clamp(min=1e-6) / (2 ** (FOUR - 1) - 0.5)
        # with offsets the middle of -8 to 7 may lie on the centre
        for centre in [*centres, *(centre + step / 2 for centre in centres if offsets)]:
            error = (coded(turned, step, centre, FOUR) - turned).square().sum(1, keepdim=True)
            if pairs:
                error = error + error.roll(error.shape[2] // 2, 2)
            better = error < best
            best, scale, offset = (
                torch.where(better, new, old) for new, old in ((error, best), (step, scale), (centre, offset))
            )
    return Grid(FOUR, scale, offset, turn)


def hadamard(size: int) -> Tensor:
    """The orthogonal matrix of Sylvester's construction; ``size`` is a power of two."""
    made = torch.ones(1, 1)
    while len(made) < size:
        made = torch.cat([torch.cat([made, made], 1), torch.cat([made, -made], 1)])
    return made / size**0.5


def in_blocks(x: Tensor) -> Tensor:
    """Every `BLOCK` channels of a position by a scale of their own, which their largest number sets."""
    parts = x.unflatten(-1, (-1, BLOCK))
    scale = parts.gather(-1, parts.abs().argmax(-1, keepdim=True)) / -8
    scale = torch.where(scale == 0, 1.0, scale)
    return (torch.round(parts / scale).clamp(-8, 7) * scale).flatten(-2)


class HookedAttention(LayerAttention):
    """New keys and values go through ``rounding`` before anything attends to them."""

    def __init__(self, spec: DecoderSpec, rounding: Layer) -> None:
        super().__init__(spec)
        self.rounding = rounding

    def kept(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.rounding[0](k), self.rounding[1](v)


class HookedKernels(ArithmeticKernels):
    """A package's roundings, and those of each layer's cache."""

    def __init__(self, arithmetic: Arithmetic, layers: Layers) -> None:
        super().__init__(arithmetic)
        self.layers = layers

    def layer_attention(self, name: str, shared: CachedAttention) -> CachedAttention:
        return HookedAttention(shared.spec, self.layers(name))


class HookedBackend(TorchBackend):
    """A reference whose cache goes through ``layer`` of each attention."""

    def __init__(
        self, checkpoint: Checkpoint, weights: WeightProvider, plain: Arithmetic, layer: Callable[[str], Layer]
    ) -> None:
        super().__init__(checkpoint.spec, weights, arithmetic=plain)
        self.layer = layer

    def kernels(self) -> Kernels:
        return HookedKernels(self.arithmetic, self.layer)


def seen_by(
    checkpoint: Path, count: int, backend: Callable[[Callable[[str], Layer]], TorchBackend]
) -> dict[str, list[Tensor]]:
    """Keys and values (kv_heads, tokens, head_dim) of ``count`` samples, by the attention's name."""
    request = CalibrationRequest(
        str(checkpoint), "cpu", "mse-clip", Path("none"), samples=count, text_only=True, sample_set="machine"
    )
    processor, prompts = prompts_of(request, plan(request).checkpoint)
    kept: dict[str, tuple[list[Tensor], list[Tensor]]] = {}

    def keep(name: str, half: int, x: Tensor) -> Tensor:
        kept.setdefault(name, ([], []))[half].append(x[0].clone())
        return x

    looking = backend(lambda name: (partial(keep, name, 0), partial(keep, name, 1)))
    for prompt in prompts:
        ids = prompt.layout.input_ids
        session = Session(looking, processor, Limits(ids.shape[1] + 1, ids.shape[1]))
        session.prefill(session.embed(ids), prompt.layout, "last")
    return {name: [torch.cat(half, 1) for half in halves] for name, halves in kept.items()}


def forms(seen: dict[str, list[Tensor]]) -> list[tuple[str, dict[str, Layer]]]:
    """Ways to round all layers, by what they are."""
    plain, mixed = (make(next(iter(seen.values()))[0].shape[-1]) for make in (torch.eye, hadamard))
    eight: dict[str, Layer] = {}
    largest: dict[str, Layer] = {}
    for name, (k, v) in seen.items():
        sizes = pair_lengths(k).amax(1), v.abs().amax(1)
        eight[name] = by_largest(sizes[0], EIGHT), by_largest(sizes[1], EIGHT)
        largest[name] = by_largest(sizes[0], FOUR), by_largest(sizes[1], FOUR)
    made = [("eight bits", eight), ("largest over 7.5", largest)]
    for what, turn, offsets, pairs in (
        ("least squared error, pairs of keys", plain, False, True),
        ("least squared error", plain, False, False),
        ("with offsets", plain, True, False),
        ("heads turned", mixed, False, False),
        ("heads turned, with offsets", mixed, True, False),
    ):
        four: dict[str, Layer] = {
            name: (by_error(k, turn, offsets, pairs), by_error(v, turn, offsets)) for name, (k, v) in seen.items()
        }
        made.append((what, four))
        made.append((f"{what}; keys in eight bits", {n: (eight[n][0], four[n][1]) for n in four}))
        made.append((f"{what}; values in eight bits", {n: (four[n][0], eight[n][1]) for n in four}))
    made.append((f"blocks of {BLOCK} channels of a position", dict.fromkeys(seen, (in_blocks, in_blocks))))
    return made


def tell(given: argparse.Namespace) -> None:
    """The table."""
    read = CodesRead.begun(given, None, "keys and values", "as they are")
    backend = partial(HookedBackend, read.checkpoint, read.weights, read.plain)
    for name, layers in forms(seen_by(given.checkpoint, given.samples, backend)):
        read.row(name, backend(layers.__getitem__))


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "How far a cache of four bits is from float32.")
    reading_flags(made, "of int4, without a calibration")
    made.add_argument("--samples", type=int, default=10, metavar="N", help="that choose how to round; default 10")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    tell(given)
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.cache_int4", arguments)


if __name__ == "__main__":
    sys.exit(main())
