"""The listing of targets as text and JSON: where each published checkpoint fits, and what its layers cannot hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from export.plan.footprint import as_line, as_row, footprints
from runtime_py.errors import EdgeproofError
from runtime_py.memory import gibibytes
from targets.base import Target
from targets.devices import Device, devices_of


def exceptions(target: Target) -> list[dict[str, Any]]:
    """Layers of each family's published model that keep a wider storage than the target's precision asks for, and why."""
    from export.checkpoint.opened import published_specs
    from export.plan.plan import exceptional_groups

    rows = []
    for family, spec in published_specs():
        for precision in target.precisions:
            try:
                groups = exceptional_groups(spec, target, precision)
            except EdgeproofError as error:
                rows.append(_refused(family.name, precision, error))
                continue
            for group in groups:
                rows.append(
                    {
                        "family": family.name,
                        "precision": precision,
                        "backend": group.backend,
                        "layers": group.name,
                        "count": group.layers,
                        "becomes": group.storage,
                        "reason": group.reason,
                    }
                )
    return rows


def _refused(family: str, precision: str, error: EdgeproofError) -> dict[str, Any]:
    """A family that a backend of the target does not build at all."""
    row = {"family": family, "precision": precision, "backend": "", "layers": "all", "count": 1}
    return {**row, "becomes": "not built", "reason": error.what}


def as_json(chosen: Sequence[Target], with_exceptions: bool = True) -> dict[str, Any]:
    """Targets and their devices; sizes in bytes."""
    return {"targets": [_target_json(target, with_exceptions) for target in chosen]}


def _target_json(target: Target, with_exceptions: bool) -> dict[str, Any]:
    limits = target.limits
    row = {
        "name": target.name,
        "title": target.title,
        "backends": list(target.backend_names),
        "runtime_backend": target.runs.runtime_name,
        "precisions": list(target.precisions),
        "precision_aliases": dict(target.precision_aliases),
        "limits": {"context": limits.context, "prefill_chunk": limits.prefill_chunk, "batch": limits.batch},
        "contains": list(target.contains),
        "needs": list(target.needs),
        "devices": [_device_json(device) for device in devices_of(target.name)],
    }
    if not with_exceptions:
        return row
    return row | {"holds": [as_row(footprint) for footprint in footprints(target)], "exceptions": exceptions(target)}


def _device_json(device: Device) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": device.name,
        "title": device.title,
        "memory_bytes": device.memory,
        "usable_bytes": device.usable,
        "usable_source": device.usable_source,
    }
    if device.compute_capability:
        row["compute_capability"] = device.compute_capability
    if device.bandwidth:
        row["bandwidth_bytes_per_second"] = device.bandwidth
        row["facts_source"] = device.facts_source
        row["read_share"] = device.read_share
        row["read_share_source"] = device.read_share_source
    return row


def as_text(chosen: Sequence[Target], with_models: bool = True, in_full: bool = True) -> str:
    """Targets for a terminal.

    Args:
        with_models: what published models take there, and which devices they fit.
        in_full: where figures come from, too, and which of the models' layers keep a wider storage.
    """
    shown = (_target_lines(target, with_models, in_full) for target in chosen)
    return "\n".join(line for lines in shown for line in lines).rstrip()


def _target_lines(target: Target, with_models: bool, in_full: bool) -> Iterator[str]:
    yield f"{target.name}: {target.title}"
    yield f"  precisions  {', '.join(target.precisions)} (the first is the default)"
    limits = target.limits
    yield f"  limits      context {limits.context}, prefill chunk {limits.prefill_chunk}, batch {limits.batch}"
    for title, lines in (("contains", target.contains), ("needs", target.needs)):
        for number, line in enumerate(lines):
            yield f"  {title if not number else '':<11} {line}"
    for device in devices_of(target.name):
        usable = f"{gibibytes(device.usable)} for one app"
        facts = f" ({device.usable_source}){_bandwidth(device)}" if in_full else ""
        yield f"  device      {device.name}: {device.title}; {usable}{facts}"
    if with_models:
        for number, footprint in enumerate(footprints(target)):
            yield f"  {'' if number else 'holds':<11} {as_line(footprint, devices_of(target.name), in_full)}"
        if in_full:
            yield from _exception_lines(target)
    yield ""


def _bandwidth(device: Device) -> str:
    if not device.bandwidth:
        return ""
    read = f"{device.read_share:.0%} of it read while answering ({device.read_share_source})"
    return f"; {device.bandwidth / 1e9:g} GB/s ({device.facts_source}), {read}"


def _exception_lines(target: Target) -> Iterator[str]:
    """One line for all layers of a stage that stay in one storage for one reason."""
    gathered: dict[tuple[str, ...], list[str]] = {}
    for row in exceptions(target):
        stage, _, layer = row["layers"].partition(".")
        key = (row["family"], row["precision"], row["backend"], stage, row["becomes"], row["reason"])
        gathered.setdefault(key, []).append(layer.rpartition(".*.")[2])
    for (family, precision, backend, stage, becomes, reason), layers in gathered.items():
        names = ", ".join(dict.fromkeys(layers))
        yield f"  wider       {family} at {precision}, {backend} {stage} {names}: {becomes}, {reason}"
