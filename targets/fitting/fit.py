"""Whether a package fits a device, and the nearest setting that does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from targets.base import ANSWER_ROOM, Limits
from targets.devices import Device

DeviceBytes = Callable[[str, Limits], Mapping[str, int]]
"""Memory on the device by part, for a precision and limits."""

SMALLEST_CONTEXT = 256
CONTEXT_STEP = 64


@dataclass(frozen=True)
class Setting:
    """A precision and limits that fit, and what they need (bytes).

    Attributes:
        fewer: the sequences are not as many as were asked for.
    """

    precision: str
    limits: Limits
    needed: int
    fewer: bool

    def flags(self) -> str:
        limits = self.limits
        batch = f" --batch {limits.batch}" if self.fewer else ""
        return f"--precision {self.precision} --context {limits.context} --prefill-chunk {limits.prefill_chunk}{batch}"


def with_context(limits: Limits, context: int) -> Limits:
    """The same limits at another context; a chunk never exceeds the context."""
    return Limits(context, min(limits.prefill_chunk, context), limits.batch)


def largest_context(needed: Callable[[int], int], low: int, high: int, budget: int) -> int | None:
    """The largest multiple of CONTEXT_STEP from ``low`` to ``high`` (or ``high`` itself) that fits, by bisection.

    Args:
        needed: bytes at a context, never falling as the context grows.

    Returns:
        None when even ``low`` does not fit.
    """
    if needed(high) <= budget:
        return high
    if needed(low) > budget:
        return None
    fits, fails = low, high
    while fails - fits > CONTEXT_STEP:
        middle = (fits + fails) // 2 // CONTEXT_STEP * CONTEXT_STEP
        middle = max(middle, fits + CONTEXT_STEP)
        if needed(middle) <= budget:
            fits = middle
        else:
            fails = middle
    return fits


def nearest_fit(
    device: Device,
    precision: str,
    limits: Limits,
    precisions: Sequence[str],
    device_bytes: DeviceBytes,
    picture_rows: int = 0,
) -> Setting | None:
    """The nearest setting that fits ``device``: fewer sequences first, then smaller contexts, then smaller precisions.

    Args:
        precisions: what the target offers, in any order; only those that need less than ``precision`` are tried,
            the one closest to it first.
        picture_rows: rows of a picture, which every context must hold beside a question and an answer.
    """

    def needed(name: str, context: int) -> int:
        return sum(device_bytes(name, with_context(limits, context)).values())

    for batch in range(limits.batch - 1, 0, -1):
        fewer = replace(limits, batch=batch)
        size = sum(device_bytes(precision, fewer).values())
        if size <= device.usable:
            return Setting(precision, fewer, size, fewer=True)
    several, limits = limits.batch > 1, replace(limits, batch=1)
    asked = needed(precision, limits.context)
    smaller = [(needed(name, limits.context), name) for name in precisions if name != precision]
    order = [precision, *(name for size, name in sorted(smaller, reverse=True) if size < asked)]
    least = picture_rows + ANSWER_ROOM if picture_rows else SMALLEST_CONTEXT
    low = min(max(SMALLEST_CONTEXT, -(-least // CONTEXT_STEP) * CONTEXT_STEP), limits.context)
    for name in order:
        context = largest_context(lambda c, n=name: needed(n, c), low, limits.context, device.usable)  # type: ignore[misc]
        if context is not None:
            return Setting(name, with_context(limits, context), needed(name, context), several)
    return None
