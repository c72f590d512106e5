"""A package with a library: it is held against the reference too, and a fault in it alone is found and named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import ne
from pathlib import Path
from typing import Any

import pytest

from export.source.hub import DEMO_FOLDER
from parity_tests.backends import examiner
from parity_tests.check.package_check import CheckOptions, check
from runtime_py import contracts
from runtime_py.backends.conftest import DECODER, TOWER, Kind
from runtime_py.errors import MachineError

CHECKPOINT = DEMO_FOLDER / "minicpm-v"


@dataclass(frozen=True)
class Examined:
    """What is measured of a stage's library.

    Attributes:
        library: and a package that has it.
        title: of the measurement.
        layers: names of scales of one shape, by the number of their block.
        probes: what begins the names of what it says.
    """

    library: Kind
    title: str
    stage: str
    layers: str
    probes: tuple[str, ...]
    options: CheckOptions

    def __str__(self) -> str:
        return str(self.library)


OF_A_DECODER = Examined(
    DECODER,
    examiner.LIBRARY,
    contracts.DECODER,
    "layers.{}.mlp.down.weight_scales",
    ("prefill_logits", "step_logits"),
    CheckOptions(steps=3, only="text", trust=True),
)
OF_A_TOWER = Examined(
    TOWER,
    examiner.TOWER,
    contracts.VISION,
    "blocks.{}.mlp.fc2.weight_scales",
    ("vision",),
    CheckOptions(steps=1, trust=True),
)


@pytest.fixture(params=[OF_A_DECODER, OF_A_TOWER], ids=str)
def kind(request: pytest.FixtureRequest) -> Examined:
    made = request.param
    assert isinstance(made, Examined)
    return made


@pytest.fixture
def package(kind: Examined, request: pytest.FixtureRequest) -> Path:
    return kind.library.package(request)


@pytest.mark.parametrize(
    ("kind", "in_pieces"), [(OF_A_DECODER, False), (OF_A_DECODER, True), (OF_A_TOWER, False)], indirect=["kind"], ids=str
)
def test_what_the_library_says_is_judged(
    kind: Examined, package: Path, in_pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind.library.opened(package)
    if in_pieces:
        monkeypatch.setattr("parity_tests.check.package_check.streams", lambda *_: True)
    judged = check(package, CHECKPOINT, replace(kind.options, in_pieces=in_pieces)).judgement
    assert (str(judged.verdict), judged.first_failure) == ("pass", "")
    titles = dict.fromkeys(each.comparison.title for each in judged.comparisons)
    assert list(titles) == ["implementation", "kernels", "loss", f"{kind.title}: kernels"]

    def measured(title: str) -> list[tuple[str, Any]]:
        alike = [each for each in judged.comparisons if each.comparison.title == title]
        probes = [probe.measurement for each in alike for probe in each.probes]
        return [(probe.probe, probe.metrics) for probe in probes if probe.probe.startswith(kind.probes)]

    plain, ours = measured("kernels"), measured(f"{kind.title}: kernels")
    assert [probe for probe, _ in plain] == [probe for probe, _ in ours] and len(ours) > 1
    assert all(map(ne, plain, ours)), "something else runs"


def test_a_fault_in_the_library_alone_is_found_and_named(kind: Examined, package: Path, tmp_path: Path) -> None:
    kind.library.opened(package)

    def exchanged(told: Any) -> None:
        rows = {row[0]: row for row in told["parameters"]}
        one, other = (rows[kind.layers.format(block)] for block in (0, 1))
        one[4], other[4] = other[4], one[4]

    copy = kind.library.altered(package, tmp_path, exchanged).folder
    result = check(copy, CHECKPOINT, kind.options)
    assert result.verdict == "fail"
    assert result.first_failure is not None and result.first_failure.startswith(f"{kind.title}: kernels")
    parting = result.judgement.run.divergence
    assert parting is not None and (parting.stage, parting.block) == (kind.stage, "")
    assert f"{kind.library.key.replace('_', ' ')} says otherwise than the graph" in parting.note


def test_where_it_does_not_run_the_package_is_not_all_run(
    kind: Examined, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> str:
        raise MachineError("this processor runs none", "another", "export again")

    monkeypatch.setattr(f"{kind.library.opens.__module__}.chosen_variant", none)
    result = check(package, CHECKPOINT, replace(kind.options, steps=1, only="text"))
    assert (kind.title, "this processor runs none; export again") in result.judgement.run.not_run
