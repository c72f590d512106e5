"""A package with a library: it is held against the reference too, and a fault in it alone is found and named."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from operator import ne
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from export.source.hub import DEMO_FOLDER
from parity_tests.backends.examiner import LIBRARY, TOWER
from parity_tests.check.package_check import CheckOptions, check
from runtime_py.backends import decoder_library, vision_library
from runtime_py.backends.records import DECODER_LIBRARY, VISION_LIBRARY
from runtime_py.contracts import DECODER, VISION
from runtime_py.errors import MachineError
from runtime_py.package import read

CHECKPOINT = DEMO_FOLDER / "minicpm-v"


@dataclass(frozen=True)
class Kind:
    """A stage's library.

    Attributes:
        fixture: a package that has one.
        title: of what is measured of it.
        layers: names of scales of one shape, by the number of their block.
        probes: what begins the names of what it says.
    """

    fixture: str
    module: ModuleType
    key: str
    title: str
    stage: str
    layers: str
    probes: tuple[str, ...]
    options: CheckOptions

    def __str__(self) -> str:
        return self.key

    def runs_here(self, package: Path) -> None:
        try:
            self.module.chosen_variant(read(package).manifest["backends"]["onnx"][self.key]["libraries"])
        except MachineError as error:
            pytest.skip(error.what)


OF_A_DECODER = Kind(
    "library_package",
    decoder_library,
    DECODER_LIBRARY,
    LIBRARY,
    DECODER,
    "layers.{}.mlp.down.weight_scales",
    ("prefill_logits", "step_logits"),
    CheckOptions(steps=3, only="text", trust=True),
)
OF_A_TOWER = Kind(
    "tower_package",
    vision_library,
    VISION_LIBRARY,
    TOWER,
    VISION,
    "blocks.{}.mlp.fc2.weight_scales",
    ("vision",),
    CheckOptions(steps=1, trust=True),
)


@pytest.fixture(params=[OF_A_DECODER, OF_A_TOWER], ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    made = request.param
    assert isinstance(made, Kind)
    return made


@pytest.fixture
def package(kind: Kind, request: pytest.FixtureRequest) -> Path:
    made = request.getfixturevalue(kind.fixture)
    assert isinstance(made, Path)
    return made


@pytest.mark.parametrize(
    ("kind", "in_pieces"), [(OF_A_DECODER, False), (OF_A_DECODER, True), (OF_A_TOWER, False)], indirect=["kind"], ids=str
)
def test_what_the_library_says_is_judged(
    kind: Kind, package: Path, in_pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind.runs_here(package)
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


def test_a_fault_in_the_library_alone_is_found_and_named(kind: Kind, package: Path, tmp_path: Path) -> None:
    kind.runs_here(package)
    copy = Path(shutil.copytree(package, tmp_path / "package"))
    index = copy / read(copy).manifest["backends"]["onnx"][kind.key]["index"]
    told = json.loads(index.read_text(encoding="utf-8"))
    rows = {row[0]: row for row in told["parameters"]}
    one, other = (rows[kind.layers.format(block)] for block in (0, 1))
    one[4], other[4] = other[4], one[4]
    index.write_text(json.dumps(told), encoding="utf-8")
    result = check(copy, CHECKPOINT, kind.options)
    assert result.verdict == "fail"
    assert result.first_failure is not None and result.first_failure.startswith(f"{kind.title}: kernels")
    parting = result.judgement.run.divergence
    assert parting is not None and (parting.stage, parting.block) == (kind.stage, "")
    assert f"{kind.key.replace('_', ' ')} says otherwise than the graph" in parting.note


def test_where_it_does_not_run_the_package_is_not_all_run(
    kind: Kind, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> str:
        raise MachineError("this processor runs none", "another", "export again")

    monkeypatch.setattr(kind.module, "chosen_variant", none)
    result = check(package, CHECKPOINT, replace(kind.options, steps=1, only="text"))
    assert (kind.title, "this processor runs none; export again") in result.judgement.run.not_run
