"""What each published checkpoint takes on a target, where that fits, and the stages that a backend cannot hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from export.plan.speed import token_bytes
from runtime_py.errors import EdgeproofError
from runtime_py.memory import gibibytes
from targets.base import Target
from targets.devices import Device, devices_of
from targets.fitting.speed import as_words, tokens_per_second

if TYPE_CHECKING:
    from export.specs import ModelSpec
    from runtime_py.backends.stock_engine import StockEngine


@dataclass(frozen=True)
class Footprint:
    """One published checkpoint on one target at its default precision and limits. Sizes are bytes.

    Attributes:
        refused: why the backend that runs here does not build the checkpoint, "" when it does.
        parts: memory on the device by part (weights, kv_cache, activations, ...).
        stages: the weights of each stage among them, as files.
        fits: device name to whether one app may take as much there.
        speeds: device name to predicted tokens a second of an answer, None where no bandwidth is told.
        engine: what an app's own engine does with the package; None where packages are run by nothing but ours.
    """

    family: str
    checkpoint: str
    precision: str
    refused: str
    parts: dict[str, int]
    stages: dict[str, int]
    fits: dict[str, bool]
    engine: StockEngine | None = None
    speeds: dict[str, float | None] = field(default_factory=dict)

    @property
    def needed(self) -> int:
        return sum(self.parts.values())

    def reason(self) -> str:
        """Where the memory goes: the two largest parts, and the stage with the most weights."""
        largest = sorted(self.parts, key=lambda part: self.parts[part], reverse=True)[:2]
        stage = max(self.stages, key=lambda name: self.stages[name])
        parts = ", ".join(f"{part} {gibibytes(self.parts[part])}" for part in largest)
        return f"{parts}; of the weights the {stage} has {gibibytes(self.stages[stage])}"


def footprints(target: Target) -> list[Footprint]:
    """Every published checkpoint of every family on a target, in the families' order; variants of equal shape once."""
    from export.families.published import variants
    from export.families.registry import families
    from export.source.tensor_source import EmptySource

    rows = []
    for family in families().values():
        seen: list[Any] = []
        for hub_id in variants(family.published_table()):
            spec = family.spec(family.published_config(hub_id, "full"), EmptySource())
            shape = (spec.vision, spec.connector, spec.decoder)
            if shape not in seen:
                seen.append(shape)
                rows.append(footprint_of(target, hub_id, spec))
    return rows


def footprint_of(target: Target, checkpoint: str, spec: ModelSpec) -> Footprint:
    """One checkpoint on one target."""
    from export.backends.base import BuildOptions
    from export.backends.registry import backend_named
    from runtime_py.contracts import STAGES

    precision = target.precisions[0]
    made = backend_named(target.runs.name).exporter()
    limits = target.limits.holding(made.picture_rows(spec)).capped(spec.decoder.max_positions)
    options = BuildOptions(target, precision, limits)
    try:
        made.refuse(spec, options)
        assignments = made.assignments(spec, options)
        prediction = made.predict(spec, options, assignments)
    except EdgeproofError as error:
        return Footprint(spec.family, checkpoint, precision, error.what, {}, {}, {})
    parts = dict(prediction.device_bytes)
    stages = {stage: prediction.file_bytes.get(stage, 0) for stage in STAGES}
    fits = {device.name: sum(parts.values()) <= device.usable for device in devices_of(target.name)}
    read = token_bytes(prediction, assignments, limits)
    speeds = {device.name: tokens_per_second(device, read) for device in devices_of(target.name)}
    engine = made.stock_engine(spec, options)
    return Footprint(spec.family, checkpoint, precision, "", parts, stages, fits, engine, speeds)


def as_line(footprint: Footprint, devices: list[Device], in_full: bool = True) -> str:
    """One line for a terminal; ``in_full`` says what does not fit, too, and what a phone's app can do with it."""
    name = f"{footprint.checkpoint} at {footprint.precision}"
    if footprint.refused:
        return f"not built: {name}: {footprint.refused}"
    fitting = [_with_speed(footprint, device) for device in devices if footprint.fits[device.name]]
    rest = [f"{device.name} ({gibibytes(device.usable)})" for device in devices if not footprint.fits[device.name]]
    where = "fits " + ", ".join(fitting) if fitting else "fits none of these devices"
    if not in_full:
        return f"{name}: {gibibytes(footprint.needed)}, {where}"
    others = f"; not {', '.join(rest)}" if fitting else ""
    not_there = f"{others}: {footprint.reason()}" if rest else ""
    told = f"; in the app: {footprint.engine.use}" if footprint.engine else ""
    return f"{name}: {gibibytes(footprint.needed)}, {where}{not_there}{told}"


def _with_speed(footprint: Footprint, device: Device) -> str:
    speed = as_words(footprint.speeds.get(device.name))
    return device.name + (f" ({speed})" if speed else "")


def as_row(footprint: Footprint) -> dict[str, Any]:
    """The same for programs."""
    return {
        "family": footprint.family,
        "checkpoint": footprint.checkpoint,
        "precision": footprint.precision,
        "refused": footprint.refused or None,
        "device_bytes": footprint.parts,
        "stage_bytes": footprint.stages,
        "fits": footprint.fits,
        "tokens_per_second": {name: None if speed is None else round(speed, 1) for name, speed in footprint.speeds.items()},
        "stock_engine": footprint.engine.to_json() if footprint.engine else None,
    }
