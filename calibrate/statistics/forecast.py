"""How long a calibration will take on this machine and how much memory, before it begins and after every block.

Nearly all of the time is in products whose sizes are known: of the samples with the weights, of the samples with themselves
(moments), and of a layer's changes with its moment (codes). A short product measured first says how fast this machine is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from calibrate.methods.chunks import busy_threads, chunk_rows
from calibrate.samples.machine import PICTURE_EVERY
from calibrate.statistics.stage_stream import block_of
from runtime_py.contracts import DECODER
from runtime_py.memory import human_bytes

if TYPE_CHECKING:
    import torch

    from calibrate.samples.data import Prompt
    from export.quantisation.spec import Assignment
    from export.specs import ModelSpec

log = logging.getLogger("edgeproof")

TYPICAL_TOKENS, TYPICAL_PATCHES = 300, 1024
"""Of a sample, and of a picture whose size varies, before any is drawn."""

PASSES, SEEN_ONCE = 2.4, 2.0
"""Products of samples with a block whose codes are chosen (a pass and most of another), and with other layers (one pass),
each with what is computed between products: attention, norms, activations."""

MOMENT_SHARE = 0.65
"""Of a moment's products, what is computed, with what that takes beside: the rest is its mirror."""

SOLVED = 2.0
"""Products of a layer's weights with its moment, in whole ones, that GPTQ, the choice between its rows and plain rounding's
and the report take."""

EACH_WEIGHT, EACH_ROUNDED = 200e-9, 5e-9
"""Seconds of one thread that searching, rounding, reading and writing a weight takes, and reading and rounding one alone."""

SOLVING = 10
"""Numbers in float32 for each weight of a chunk that is being solved."""

LEAST_SECONDS = 30.0
"""Below this nothing is said: it is over before it is read."""


@dataclass(frozen=True)
class Machine:
    """Multiply-adds a second of this process's threads: in float32, and in what samples pass a model in."""

    whole: float
    passing: float
    threads: int

    @classmethod
    def measured(cls, half: bool) -> Machine:
        """By two products of some 30 ms each."""
        import torch

        whole = _rate(torch.float32)
        return cls(whole, _rate(torch.bfloat16) if half else whole, torch.get_num_threads())


def _rate(dtype: torch.dtype) -> float:
    import torch

    rows, width = 384, 2048
    x, weight = torch.ones(rows, width, dtype=dtype), torch.ones(width, width, dtype=dtype)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        times.append(time.perf_counter() - began)
    return rows * width * width / min(times)


@dataclass(frozen=True)
class Load:
    """What samples bring: rows of the decoder, and of the vision tower."""

    tokens: int
    patches: int

    @classmethod
    def of(cls, spec: ModelSpec, prompts: Sequence[Prompt]) -> Load:
        """Of samples that were drawn."""
        each = spec.vision.structure.patch_values
        values = sum(image.vision["pixel_values"].size for prompt in prompts for image in prompt.images)
        return cls(sum(prompt.layout.input_ids.shape[1] for prompt in prompts), values // each)

    @classmethod
    def typical(cls, spec: ModelSpec, samples: int, text_only: bool) -> Load:
        """Of so many samples of usual length."""
        patches = spec.vision.structure.patches or TYPICAL_PATCHES
        return cls(samples * TYPICAL_TOKENS, 0 if text_only else samples // PICTURE_EVERY * patches)


@dataclass(frozen=True)
class Forecast:
    """Seconds at the speed that was measured, and bytes.

    Attributes:
        other: seconds of what has no codes of the decoder: vision, connector.
        blocks: seconds of every block of the decoder that has codes, in order.
        memory: bytes at the largest, what lies in mapped files apart.
    """

    other: float
    blocks: Mapping[str, float]
    memory: int

    @property
    def seconds(self) -> float:
        """Of the whole calibration."""
        return self.other + sum(self.blocks.values())

    @property
    def long(self) -> bool:
        """Whether there is time to read how long it takes."""
        return self.seconds >= LEAST_SECONDS


def forecast(
    spec: ModelSpec, assignments: Mapping[str, Assignment], wanted: Sequence[str], load: Load, machine: Machine
) -> Forecast:
    """What GPTQ takes; some methods take longer (`calibrate.methods.base.Method.longer`).

    A layer's codes are divided among the threads that its chunks keep busy, everything else among all of them.
    """
    chosen = frozenset(wanted)
    blocks: dict[str, float] = {}
    weights: dict[str, int] = {}
    coded = {block_of(name) for name in chosen}
    other, widest, solving = 0.0, 0, 0
    for name, assignment in assignments.items():
        layer = assignment.layer
        if layer.role == "embedding":
            continue
        size, in_decoder = layer.rows * layer.columns, name.startswith(f"{DECODER}.")
        rows = load.tokens if in_decoder else load.patches
        passed = 0.0 if layer.role == "head" else rows * size / machine.passing
        if name in chosen:
            moment, busy = layer.columns**2, busy_threads(layer.rows, layer.columns, machine.threads)
            codes = EACH_WEIGHT * size / machine.threads + SOLVED * layer.rows * moment / machine.whole
            taken = codes * machine.threads / busy + MOMENT_SHARE * rows * moment / machine.whole + PASSES * passed
            widest = max(widest, layer.columns)
            solving = max(solving, busy * chunk_rows(layer.rows, layer.columns) * layer.columns)
        else:
            taken = EACH_ROUNDED * size / machine.threads + SEEN_ONCE * passed
        block = block_of(name)
        if in_decoder and block in coded:
            blocks[block] = blocks.get(block, 0.0) + taken
        elif layer.role != "head":
            other += taken
        if in_decoder and layer.role != "head":
            weights[block] = weights.get(block, 0) + size
    return Forecast(other, blocks, _memory(spec, load, widest, max(weights.values(), default=0), solving))


def _memory(spec: ModelSpec, load: Load, widest: int, block: int, solving: int) -> int:
    """A block's weights before and after, the moments of its layers with a factor, what samples are between two blocks, and
    the chunks that are being solved.
    """
    activations = 2 * load.tokens * spec.decoder.hidden
    moments = 4 * widest**2 + 3 * spec.decoder.hidden**2
    return 4 * (2 * block + moments + activations + SOLVING * solving) + BASE


BASE = 700 << 20
"""Bytes of the interpreter and its libraries, and of the processor's buffers."""


def told(expected: Forecast, load: Load, longer: bool) -> str:
    """One line for the plan and for the beginning of a run.

    Args:
        longer: the method takes longer than what is foretold.
    """
    least = "at least " if longer else "about "
    pictures = f" and {load.patches:,} patches of pictures" if load.patches else ""
    return (
        f"{least}{duration(expected.seconds)} for {load.tokens:,} tokens{pictures} at the speed this machine has now, and "
        f"{human_bytes(expected.memory)} of memory"
    )


def of_machine(
    spec: ModelSpec, assignments: Mapping[str, Assignment], wanted: Sequence[str], load: Load, half: bool
) -> Forecast:
    """A forecast for the machine that this runs on, where samples pass in float32 or, with ``half``, in bfloat16."""
    return forecast(spec, assignments, wanted, load, Machine.measured(half))


class Progress:
    """Says after every block how long the rest will take, by what the blocks so far took beside what was foretold.

    Args:
        expected: what was foretold.
        clock: seconds from any moment.
    """

    def __init__(self, backend: str, expected: Forecast, clock: Callable[[], float] = time.perf_counter) -> None:
        self.backend, self.expected, self._clock = backend, expected, clock
        self._left = dict(expected.blocks)
        self._last: float | None = None
        self._took = self._foretold = 0.0

    def passed(self, block: str, earlier: bool = False) -> None:
        """A block's codes are on the disk, of this run or an ``earlier`` one."""
        now, seconds = self._clock(), self._left.pop(block, 0.0)
        # the first block's time began with the images, at a moment that nobody took down
        if self._last is not None and seconds and not earlier:
            self._took, self._foretold = self._took + now - self._last, self._foretold + seconds
        self._last = now
        if self.expected.long and self._left:
            left = sum(self._left.values()) * (self._took / self._foretold if self._foretold else 1.0)
            done = len(self.expected.blocks) - len(self._left)
            log.info("%s: %d of %d blocks, about %s left", self.backend, done, len(self.expected.blocks), duration(left))


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``2 h 5 min``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
