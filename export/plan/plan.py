"""What an export will make, need and cost, worked out from shapes before any work."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from export.backends.registry import backend_named
from export.plan.machine import available_memory
from export.plan.speed import token_bytes
from export.plan.widths import remarks
from export.quantisation.choice import storages_of, widened
from export.quantisation.spec import Assignment, is_int4
from export.quantisation.stored import read_manifest
from runtime_py.contracts import STAGES
from runtime_py.errors import DoesNotFitError
from runtime_py.hub.room import free_bytes
from runtime_py.memory import gibibytes
from targets.base import Limits, Target
from targets.devices import devices_of
from targets.fitting.fit import Setting, nearest_fit
from targets.fitting.speed import tokens_per_second

if TYPE_CHECKING:
    from pathlib import Path

    from export.backends.base import BuildOptions, ExportBackend, Prediction
    from export.families.base import Family
    from export.request import ExportRequest
    from export.specs import ModelSpec
    from export.verification import Verifier
    from runtime_py.backends.stock_engine import StockEngine

SPARE_DISK = 64 << 20
"""Room beside the predicted files for side files, journal and filesystem overhead."""


@dataclass(frozen=True)
class LayerGroup:
    """Layers that differ only in their index and become the same thing for the same reason."""

    backend: str
    name: str
    layers: int
    rows: int
    columns: int
    storage: str
    grid: str
    reason: str


@dataclass(frozen=True)
class DeviceFit:
    """One device: what an app may take, whether the package fits, and the nearest setting that does (asked device only).

    Attributes:
        tokens_per_second: predicted, of an answer while the context is half full; None where no bandwidth is told.
        speed_source: of the bandwidth and of the part of it that is read, "" where none is told.
    """

    name: str
    title: str
    usable: int
    usable_source: str
    fits: bool
    nearest: Setting | None = None
    tokens_per_second: float | None = None
    speed_source: str = ""


@dataclass(frozen=True)
class Part:
    """One backend's share: its assignments, what they cost, and what an app's own engine does with its files."""

    backend: ExportBackend
    assignments: Mapping[str, Assignment]
    prediction: Prediction
    engine: StockEngine | None = None


@dataclass(frozen=True)
class Plan:
    """The whole plan. Sizes are bytes."""

    request: ExportRequest
    family: Family
    spec: ModelSpec
    options: BuildOptions
    checkpoint_id: str
    parts: Mapping[str, Part]
    parameters: Mapping[str, int]
    groups: tuple[LayerGroup, ...]
    available_memory: int
    free_disk: int
    devices: tuple[DeviceFit, ...]
    verification_peak: int
    notes: tuple[str, ...] = field(default=())

    @property
    def file_bytes(self) -> int:
        return sum(sum(part.prediction.file_bytes.values()) for part in self.parts.values())

    @property
    def disk_needed(self) -> int:
        return self.file_bytes + SPARE_DISK

    @property
    def export_peak(self) -> tuple[int, str]:
        """Highest resident bytes of the export process and the step that takes them."""
        peaks = [(p.prediction.export_peak, f"{name}: {p.prediction.peak_step}") for name, p in self.parts.items()]
        if self.verification_peak and not self.request.skip_verify:
            peaks.append((self.verification_peak, "check against the reference"))
        return max(peaks)

    @property
    def device_bytes(self) -> Mapping[str, int]:
        """Memory on the device by part, of the backend that the target runs by default."""
        return self.parts[self.options.target.runs.name].prediction.device_bytes

    @property
    def token_bytes(self) -> int:
        """What one answer token reads while the context is half full."""
        runner = self.parts[self.options.target.runs.name]
        return token_bytes(runner.prediction, runner.assignments, self.options.limits)

    def refuse_if_it_does_not_fit(self) -> None:
        """Raise DoesNotFitError when the named device, this machine's memory or its disk does not suffice."""
        self._check_device()
        self._check_memory()
        if self.disk_needed > self.free_disk:
            raise DoesNotFitError(
                f"the package needs {gibibytes(self.disk_needed)} on the disk of {self.request.output_folder()}",
                f"at most the {gibibytes(self.free_disk)} that are free there",
                "free some space, choose another disk with -o, or a smaller --precision",
            )

    def _check_device(self) -> None:
        for device in self.devices:
            if self.request.device is None or device.fits:
                continue
            needed = sum(self.device_bytes.values())
            limits = self.options.limits
            if device.nearest is None:
                smallest = "no smaller context or precision of this target fits; choose a larger device or a smaller model"
            else:
                smallest = (
                    f"the nearest setting that fits: {device.nearest.flags()} (needs {gibibytes(device.nearest.needed)})"
                )
            raise DoesNotFitError(
                f"{self.options.precision} at a context of {limits.context} does not fit {device.title}",
                f"at most {gibibytes(device.usable)} for one app there, predicted {gibibytes(needed)}",
                smallest,
            )

    def _check_memory(self) -> None:
        peak, step = self.export_peak
        if peak <= self.available_memory:
            return
        if step == "check against the reference":
            way_out = "free some memory, or leave the check out by name with --skip-verify (the package records it)"
        else:
            way_out = "free some memory, use a machine with more, or a smaller --precision"
        raise DoesNotFitError(
            f"this machine has too little memory for the step '{step}'",
            f"{gibibytes(peak)} resident at its highest, {gibibytes(self.available_memory)} can be taken",
            way_out,
        )


def make_plan(
    request: ExportRequest,
    family: Family,
    spec: ModelSpec,
    checkpoint_id: str,
    output: Path,
    verifier: Verifier | None,
    notes: tuple[str, ...] = (),
) -> Plan:
    """Work out the plan from the request and the model's shapes; reads no weights."""
    from export.backends.base import BuildOptions
    from export.modules.build import parameter_shapes

    target = request.target_record()
    limits = request.limits(spec.decoder.max_positions, picture_rows(target, spec))
    device = request.device_record()
    capability = "" if device is None else device.compute_capability
    options = BuildOptions(target, request.precision_name(), limits, request.backend_options(), capability)
    parts = {name: _part(name, spec, options, request) for name in target.backend_names}
    counts = dict.fromkeys(STAGES, 0)
    for name, shape in parameter_shapes(spec).items():
        counts[name.split(".", 1)[0]] += math.prod(shape)
    groups = [g for name, part in parts.items() for g in group_layers(name, part.assignments)]
    predictions = {name: part.prediction for name, part in parts.items()}
    return Plan(
        request=request,
        family=family,
        spec=spec,
        options=options,
        checkpoint_id=checkpoint_id,
        parts=parts,
        parameters=counts,
        groups=tuple(groups),
        available_memory=available_memory(),
        free_disk=free_bytes(output),
        devices=_fits(request, spec, options, parts),
        verification_peak=0 if verifier is None else verifier.predicted_peak(spec, predictions, options),
        notes=(
            *notes,
            *(r for name, part in parts.items() for r in remarks(name, options.precision, part.assignments)),
            *(note for part in parts.values() for note in part.backend.notes(spec, options, part.assignments)),
        ),
    )


def picture_rows(target: Target, spec: ModelSpec) -> int:
    """Rows of a picture that one call of every backend's decoder must take on ``target``."""
    return max(_exporter(name).picture_rows(spec) for name in target.backend_names)


def _exporter(name: str) -> ExportBackend:
    return backend_named(name).exporter()


def _part(name: str, spec: ModelSpec, options: BuildOptions, request: ExportRequest) -> Part:
    made = _exporter(name)
    made.refuse(spec, options)
    assignments = made.assignments(spec, options)
    choices = [] if request.calibration is None else [read_manifest(request.calibration)["choice"] or {}]
    choices += [] if request.choice is None else [storages_of(request.choice, request.target_record().backend_names)]
    for storages in choices:
        assignments = widened(name, assignments, storages.get(name, {}))
    return Part(made, assignments, made.predict(spec, options, assignments), made.stock_engine(spec, options))


def _fits(
    request: ExportRequest, spec: ModelSpec, options: BuildOptions, parts: Mapping[str, Part]
) -> tuple[DeviceFit, ...]:
    """The asked device, or all devices of the target, with whether the package fits each."""
    runner = parts[options.target.runs.name]
    needed = sum(runner.prediction.device_bytes.values())
    read = token_bytes(runner.prediction, runner.assignments, options.limits)

    def device_bytes(precision: str, limits: Limits) -> Mapping[str, int]:
        return _part_at(runner.backend, spec, options, precision, limits).device_bytes

    asked, least = request.device_record(), picture_rows(options.target, spec)
    rows = []
    for device in [asked] if asked else devices_of(options.target.name):
        fits = needed <= device.usable
        nearest = None
        if asked and not fits:
            others = options.target.precisions
            nearest = nearest_fit(device, options.precision, options.limits, others, device_bytes, least)
        speed = tokens_per_second(device, read)
        rows.append(
            DeviceFit(
                device.name,
                device.title,
                device.usable,
                device.usable_source,
                fits,
                nearest,
                speed,
                "" if speed is None else f"{device.facts_source}; {device.read_share_source}",
            )
        )
    return tuple(rows)


def _part_at(made: ExportBackend, spec: ModelSpec, options: BuildOptions, precision: str, limits: Limits) -> Prediction:
    from export.backends.base import BuildOptions

    other = BuildOptions(options.target, precision, limits, options.extra, options.compute_capability)
    return made.predict(spec, other, made.assignments(spec, other))


def group_layers(backend_name: str, assignments: Mapping[str, Assignment]) -> list[LayerGroup]:
    """Assignments as rows that differ: same name but for indices, same shape, storage, grid and reason."""
    counted: dict[tuple[Any, ...], int] = {}
    for name, a in assignments.items():
        general = re.sub(r"\.\d+(?=\.|$)", ".*", name)
        key = (general, a.layer.rows, a.layer.columns, str(a.storage), a.grid, a.reason)
        counted[key] = counted.get(key, 0) + 1
    return [
        LayerGroup(backend_name, name, count, rows, columns, storage, grid, reason)
        for (name, rows, columns, storage, grid, reason), count in counted.items()
    ]


def exceptional_groups(spec: ModelSpec, target: Target, precision: str) -> list[LayerGroup]:
    """Layer groups that get another storage than the precision names, with the backend's reason."""
    from export.backends.base import BuildOptions

    options = BuildOptions(target, precision, target.limits)
    groups = [g for name in target.backend_names for g in group_layers(name, _exporter(name).assignments(spec, options))]
    asked = "int4" if is_int4(precision) else precision
    return [group for group in groups if group.storage != asked]
