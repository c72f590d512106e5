"""How fast a package answers on a device, predicted from the bytes that one token reads."""

from __future__ import annotations

from targets.devices import Device

WHOLE_CACHE = 2
"""The figure is for a context that is half full: then the cache that a token reads is the whole one over this."""


def tokens_per_second(device: Device, token_bytes: int) -> float | None:
    """Answer tokens a second of one request, when nothing but reading memory takes time; None where no bandwidth is told.

    Args:
        token_bytes: what one token reads (`export.plan.speed.token_bytes`).
    """
    if not device.bandwidth:
        return None
    return device.bandwidth * device.read_share / token_bytes


def as_words(speed: float | None) -> str:
    """``up to 17 tokens/s``, or "" where it is not known."""
    return "" if speed is None else f"up to {speed:.0f} tokens/s" if speed >= 10 else f"up to {speed:.1f} tokens/s"
