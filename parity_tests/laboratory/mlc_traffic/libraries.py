"""The scheduled kernels of a family's library, from config and shapes alone; nothing is compiled."""

from __future__ import annotations

from dataclasses import replace

import tvm
from tvm import relax
from tvm.target import Target

from export.backends.base import BuildOptions
from export.backends.mlc.backend import MlcBackend
from export.backends.mlc.compile_process import LibraryRequest
from export.backends.mlc.library import SCHEDULES, TARGETS, bounds_of, build_module
from export.backends.mlc.overview import make_overview
from export.backends.mlc.package_parts import declared_parameters
from export.backends.mlc.passes.pipeline import lowered, scheduled
from export.backends.mlc.schemes import scheme_of
from export.backends.mlc.stock_engine import stock_engine
from export.backends.mlc.support import overview_rows
from export.families.registry import families
from export.source.tensor_source import EmptySource
from export.specs import ModelSpec
from targets.registry import target_named


def spec_of(family: str, size: str, layers: int = 0) -> ModelSpec:
    """The shape of the family's first published checkpoint.

    Args:
        size: ``full`` or ``tiny``.
        layers: of the tower and of the decoder, 0 for all.
    """
    record = families()[family]
    spec = record.spec(record.published_config("", size), EmptySource())
    if not layers:
        return spec
    return replace(spec, vision=replace(spec.vision, layers=layers), decoder=replace(spec.decoder, layers=layers))


def request_of(spec: ModelSpec, place: str, precision: str = "") -> LibraryRequest:
    """What an export would compile at the default limits; ``precision`` defaults to the target's first."""
    record, target = families()[spec.family], target_named(place)
    limits = target.limits.holding(overview_rows(spec)).capped(spec.decoder.max_positions)
    options = BuildOptions(target, precision or target.precisions[0], limits)
    assignments, scheme = MlcBackend().assignments(spec, options), scheme_of(options.precision)
    overview = make_overview(spec, record.make_processor(spec), stock_engine(spec, limits).picture)
    parameters = tuple(declared_parameters(spec, assignments, scheme, overview))
    name = f"{spec.family.replace('-', '_').replace('.', '_')}_traffic"
    return LibraryRequest(name, "traffic", spec, assignments, scheme, limits, overview, parameters)


def scheduled_module(request: LibraryRequest, place: str) -> tvm.ir.IRModule:
    """The module as it is when its kernels have their loops and reshapes have become views."""
    module, _ = build_module(request, place)
    target, schedule = Target(TARGETS[place]), Target(SCHEDULES.get(place, TARGETS[place]))
    passes = [lowered(bounds_of(request)), *scheduled(target, schedule), relax.transform.RewriteDataflowReshape()]
    options = {"tirx.disable_cse_tir": True, "relax.backend.use_cuda_graph": False}
    with target, tvm.transform.PassContext(config=options):
        return tvm.transform.Sequential(passes)(module)
