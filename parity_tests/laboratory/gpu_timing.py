"""How `parity_tests.laboratory.gpu_speed` times a call on a GPU or a processor, and what either does at most."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WARM, TIMED = 5, 30
GIB = 1 << 30


@dataclass(frozen=True)
class Place:
    """Where everything runs.

    Attributes:
        device: as PyTorch names it. provider: as ONNX Runtime does.
        dtype: of PyTorch's weights and activations.
        copied, side: bytes of the copy and width of the product that measure the ceilings.
    """

    device: str
    provider: str
    dtype: str
    copied: int
    side: int


PLACES = {
    "cuda": Place("cuda", "CUDAExecutionProvider", "float16", 4 * GIB, 8192),
    "cpu": Place("cpu", "CPUExecutionProvider", "float32", GIB // 4, 1024),
}


@dataclass(frozen=True)
class Ceilings:
    """What the place does at most, measured: bytes read and written by a copy, and operations of a matrix product."""

    bytes_per_second: float
    operations_per_second: float


def measure_ceilings(place: Place) -> Ceilings:
    """A large copy within the place's memory, and a large square product of random numbers."""
    import torch

    source = torch.randint(0, 255, (place.copied,), dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    copy = median_ms(place, lambda: target.copy_(source))
    dtype = getattr(torch, place.dtype)
    left, right = (torch.randn(place.side, place.side, dtype=dtype, device=place.device) for _ in range(2))
    product = median_ms(place, lambda: left @ right)
    return Ceilings(2 * source.numel() / copy * 1000, 2 * place.side**3 / product * 1000)


def median_ms(place: Place, call: Callable[[], object]) -> float:
    """Median milliseconds of a call whose arrays stay where they are."""
    return event_ms(call) if place.device == "cuda" else wall_ms(call)


def event_ms(call: Callable[[], object]) -> float:
    """Median milliseconds between two events around a call, warm."""
    import torch

    for _ in range(WARM):
        call()
    torch.cuda.synchronize()
    taken = []
    for _ in range(TIMED):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        call()
        ended.record()
        ended.synchronize()
        taken.append(began.elapsed_time(ended))
    return statistics.median(taken)


def wall_ms(call: Callable[[], object]) -> float:
    """Median milliseconds of a call that ends with its result in host memory, warm."""
    for _ in range(WARM):
        call()
    taken = []
    for _ in range(TIMED):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken)


def recorded(run: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
    """The launches of a call as a graph to replay, and the array it writes."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()
    return graph.replay, output
