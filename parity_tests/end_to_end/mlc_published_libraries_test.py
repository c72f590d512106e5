"""The phone libraries of the five large families compile at published sizes, every layer, from config and shapes alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.backends.base import BuildOptions
from export.backends.mlc.backend import MlcBackend
from export.backends.mlc.compile_process import LibraryRequest, compile_apart
from export.backends.mlc.objects import check_library
from export.backends.mlc.overview import make_overview
from export.backends.mlc.package_parts import declared_parameters
from export.backends.mlc.schemes import scheme_of
from export.backends.mlc.stock_engine import stock_engine
from export.backends.mlc.support import overview_rows
from export.families.registry import families
from export.source.tensor_source import EmptySource
from targets.registry import target_named

pytest.importorskip("tvm")

FAMILIES = ("omnilmm-12b", "wemm", "xverse-v", "awaker2.5-vl", "cogvlm2")


def request(family: str, place: str) -> LibraryRequest:
    """What an export of the family's first published checkpoint would compile at its default precision and limits."""
    record, target = families()[family], target_named(place)
    spec = record.spec(record.published_config("", "full"), EmptySource())
    limits = target.limits.holding(overview_rows(spec))
    options = BuildOptions(target, target.precisions[0], limits)
    assignments, scheme, overview = (
        MlcBackend().assignments(spec, options),
        scheme_of(options.precision),
        make_overview(spec, record.make_processor(spec), stock_engine(spec, limits).picture),
    )
    parameters = tuple(declared_parameters(spec, assignments, scheme, overview))
    name = f"{family.replace('-', '_').replace('.', '_')}_published"
    return LibraryRequest(name, "published", spec, assignments, scheme, limits, overview, parameters)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["android", "ios"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_library_compiles_and_is_one_that_the_app_finds(family: str, place: str, tmp_path: Path) -> None:
    asked, tar = request(family, place), tmp_path / f"{place}.tar"
    facts = compile_apart(asked, place, tar)
    assert len(check_library(tar, asked.name)) == 2
    assert facts["kv_cache"]["num_hidden_layers"] == asked.spec.decoder.layers > 20
    assert {row["name"] for row in facts["params"]} == {parameter.name for parameter in asked.parameters}
