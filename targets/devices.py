"""Devices that a package can be checked against, read from devices.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from runtime_py.errors import UsageError, did_you_mean

MIB = 1 << 20


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        memory: bytes the device has.
        usable: bytes one app may take on it; ``usable_source`` says where the figure comes from.
        bandwidth: bytes a second of its memory, 0 where not told; compute_capability: of a GPU, like ``8.9``, or "".
        facts_source: where these two and the memory come from.
        read_share: part of the bandwidth at which answering reads weights there; ``read_share_source`` says who measured it.
    """

    name: str
    title: str
    targets: tuple[str, ...]
    memory: int
    usable: int
    usable_source: str
    bandwidth: int = 0
    compute_capability: str = ""
    facts_source: str = ""
    read_share: float = 0.0
    read_share_source: str = ""


@cache
def devices() -> dict[str, Device]:
    """All devices by name, in file order."""
    rows = tomllib.loads((Path(__file__).parent / "devices.toml").read_text(encoding="utf-8"))["device"]
    known = [
        Device(
            name=row["name"],
            title=row["title"],
            targets=tuple(row["targets"]),
            memory=row["memory"] * MIB,
            usable=row["usable"] * MIB,
            usable_source=row["usable_source"],
            bandwidth=round(row.get("bandwidth", 0) * 10**9),
            compute_capability=row.get("compute_capability", ""),
            facts_source=row.get("facts_source", ""),
            read_share=row.get("read_share", 0.0),
            read_share_source=row.get("read_share_source", ""),
        )
        for row in rows
    ]
    return {device.name: device for device in known}


def devices_of(target: str) -> list[Device]:
    """The devices a target runs on, smallest first."""
    return sorted((d for d in devices().values() if target in d.targets), key=lambda d: d.usable)


def device_named(name: str, target: str) -> Device:
    """The device with this name.

    Raises:
        UsageError: there is no such device, or the target does not run on it.
    """
    known = devices().get(name.replace("_", "-"))
    if known is None or target not in known.targets:
        why = "there is no such device" if known is None else f"target {target} does not run on it"
        names = [device.name for device in devices_of(target)]
        look = "run `python -m targets` to see the devices, or add a row to targets/devices.toml"
        expected = f"for target {target} one of " + ", ".join(names)
        raise UsageError(f"--device {name}: {why}", expected, did_you_mean(name, names, look))
    return known
