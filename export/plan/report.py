"""A plan as text for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from export.plan.plan import DeviceFit, Plan
from export.plan.widths import whole, widths
from export.quantisation.spec import is_int4
from runtime_py.backends.stock_engine import StockEngine
from runtime_py.memory import human_bytes
from targets.fitting.speed import as_words

SCHEMA = 1
"""Of the plan as JSON; keys are only ever added under one number."""


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values, described by runtime_py/files/schemas/plan.schema.json; every size in bytes."""
    peak, step = plan.export_peak
    limits = plan.options.limits
    stage_widths = {name: widths(part.assignments) for name, part in plan.parts.items()}
    return {
        "schema": SCHEMA,
        "model": plan.checkpoint_id,
        "family": plan.spec.family,
        "variant": plan.spec.variant,
        "target": plan.options.target.name,
        "precision": plan.options.precision,
        "limits": {"context": limits.context, "prefill_chunk": limits.prefill_chunk, "batch": limits.batch},
        "output": str(plan.request.output_folder()),
        "stages": [
            {
                "stage": stage,
                "parameters": count,
                "bits_per_weight": {
                    name: round(by_stage[stage].bits, 4) for name, by_stage in stage_widths.items() if stage in by_stage
                },
                "file_bytes": {name: part.prediction.file_bytes.get(stage, 0) for name, part in plan.parts.items()},
            }
            for stage, count in plan.parameters.items()
        ],
        "other_file_bytes": {
            name: sum(size for stage, size in part.prediction.file_bytes.items() if stage not in plan.parameters)
            for name, part in plan.parts.items()
        },
        "bits_per_weight": {name: round(whole(part.assignments).bits, 4) for name, part in plan.parts.items()},
        "layers": [vars(group) for group in plan.groups],
        "export_peak_bytes": peak,
        "export_peak_step": step,
        "available_memory_bytes": plan.available_memory,
        "disk_needed_bytes": plan.disk_needed,
        "disk_free_bytes": plan.free_disk,
        "device_bytes": dict(plan.device_bytes),
        "token_bytes": plan.token_bytes,
        "devices": [_device_json(device) for device in plan.devices],
        "stock_engines": {name: part.engine.to_json() for name, part in plan.parts.items() if part.engine is not None},
        "licence": plan.family.licence,
        "verification": "skipped by --skip-verify" if plan.request.skip_verify else "after the build",
        "notes": list(plan.notes),
    }


def _device_json(device: DeviceFit) -> dict[str, Any]:
    nearest = None
    if device.nearest is not None:
        limits = device.nearest.limits
        nearest = {
            "precision": device.nearest.precision,
            "context": limits.context,
            "prefill_chunk": limits.prefill_chunk,
            "device_bytes": device.nearest.needed,
        }
    return {
        "name": device.name,
        "title": device.title,
        "usable_bytes": device.usable,
        "usable_source": device.usable_source,
        "fits": device.fits,
        "nearest": nearest,
        "tokens_per_second": None if device.tokens_per_second is None else round(device.tokens_per_second, 1),
        "speed_source": device.speed_source or None,
    }


def to_text(plan: Plan) -> str:
    """The plan for a terminal."""
    return "\n".join(_lines(plan))


def _lines(plan: Plan) -> Iterator[str]:
    limits = plan.options.limits
    model = f"{plan.checkpoint_id}: {plan.spec.family} {plan.spec.variant}"
    yield f"{model} for {plan.options.target.name}, {plan.options.precision}{_true_bits(plan)}"
    yield f"context {limits.context}, prefill in chunks of {limits.prefill_chunk}, batch {limits.batch}"
    yield ""
    names = list(plan.parts)
    rows = [["stage", "parameters", *(title for name in names for title in (f"{name} files", "bits/weight"))]]
    stage_widths = {name: widths(part.assignments) for name, part in plan.parts.items()}
    for stage, count in plan.parameters.items():
        cells = [f"{count:,}"]
        for name in names:
            cells.append(human_bytes(plan.parts[name].prediction.file_bytes.get(stage, 0)))
            cells.append(f"{stage_widths[name][stage].bits:.2f}" if stage in stage_widths[name] else "")
        rows.append([stage, *cells])
    others = [
        sum(size for stage, size in part.prediction.file_bytes.items() if stage not in plan.parameters)
        for part in plan.parts.values()
    ]
    rows.append(["other files", "", *(cell for size in others for cell in (human_bytes(size), ""))])
    totals = [
        cell
        for part in plan.parts.values()
        for cell in (human_bytes(sum(part.prediction.file_bytes.values())), f"{whole(part.assignments).bits:.2f}")
    ]
    rows.append(["all", f"{sum(plan.parameters.values()):,}", *totals])
    yield from _columns(rows)
    yield ""
    yield "what the layers become"
    for group in plan.groups:
        layers = f" ({group.layers} layers)" if group.layers > 1 else ""
        what = f"{group.storage} on {group.grid}" if group.grid else group.storage
        reason = f", {group.reason}" if group.reason else ""
        where = f"{group.backend}: " if len(plan.parts) > 1 else ""
        yield f"  {where}{group.name}{layers} {group.rows} x {group.columns}: {what}{reason}"
    yield ""
    peak, step = plan.export_peak
    yield f"export peak memory   {human_bytes(peak)} at '{step}'; {human_bytes(plan.available_memory)} can be taken here"
    yield f"disk needed          {human_bytes(plan.disk_needed)}; {human_bytes(plan.free_disk)} are free"
    parts = ", ".join(f"{name} {human_bytes(size)}" for name, size in plan.device_bytes.items())
    yield f"memory on the device {human_bytes(sum(plan.device_bytes.values()))}: {parts}"
    yield f"read for a token     {human_bytes(plan.token_bytes)} while the context is half full, which decides the speed"
    for device in plan.devices:
        verdict = "fits" if device.fits else "does not fit"
        speed = as_words(device.tokens_per_second) if device.fits else ""
        yield f"  {device.title}: {verdict} ({human_bytes(device.usable)} for one app){', ' if speed else ''}{speed}"
    yield from engine_lines(part.engine for part in plan.parts.values() if part.engine is not None)
    yield f"licence              {plan.family.licence}"
    if plan.request.skip_verify:
        yield "check                left out by --skip-verify; the package will record the waiver"
    for note in plan.notes:
        yield f"note                 {note}"


def _true_bits(plan: Plan) -> str:
    """What an int4 package truly takes a weight; "" for the other precisions, which say it themselves."""
    if not is_int4(plan.options.precision):
        return ""
    parts = [f"{name} {whole(part.assignments).bits:.2f}" for name, part in plan.parts.items()]
    return f" ({', '.join(parts)} bits a weight over all matrices)"


def engine_lines(engines: Iterable[StockEngine]) -> Iterator[str]:
    """What apps' own engines do with a package, for a terminal."""
    for engine in engines:
        first, *rest = engine.lines()
        yield f"in the app           {first}"
        yield from (f"  {line}" for line in rest)


def _columns(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  " + "  ".join(cells)
