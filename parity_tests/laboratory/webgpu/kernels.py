"""One package, its graphs on the WebGPU provider against the same graphs on the processor, from a picture to an answer.

Both sides compute in float32 throughout (`parity_tests.localize.onnx_blocks.set_exact` and
`runtime_py.backends.decompose.widen`), so that a difference is a kernel's. What ran where is read from ONNX Runtime's
profile, so that a graph that stayed on the processor is not called checked.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parity_tests.check.candidate import Candidate, open_candidate
from parity_tests.check.package_questions import questions
from parity_tests.judging.compare import compare_recordings
from parity_tests.judging.judge import Verdict, judge_measurement
from parity_tests.judging.probes import record
from parity_tests.judging.results import Comparison, Measurement
from parity_tests.judging.standards import Standard
from parity_tests.laboratory.consumers.outcome import first_line
from parity_tests.localize.onnx_blocks import open_graph, set_exact
from runtime_py.backends.decompose import widen
from runtime_py.backends.ort import OrtBackend
from runtime_py.backends.records import ONNX
from runtime_py.backends.webgpu import NAME, PROVIDER
from runtime_py.contracts import STAGES

STEPS = 4
"""Tokens of an answer."""

STANDARD = Standard.STORED_FLOAT32


@dataclass(frozen=True)
class Stage:
    """One graph.

    Attributes:
        worst: largest difference over the largest value, of what the graph gives; None where nothing was compared.
        on_gpu: nodes that ran on the provider.
        elsewhere: operators that ran on the processor, and how many nodes of each.
    """

    worst: float | None
    passed: bool
    on_gpu: int
    elsewhere: Mapping[str, int]


@dataclass(frozen=True)
class Checked:
    """One package: its graphs by stage, whether all greedy tokens are equal, and what could not run."""

    name: str
    stages: Mapping[str, Stage]
    tokens_equal: bool
    not_run: str = ""

    @property
    def passed(self) -> bool:
        """Everything compared, within the limits, and every graph with a kernel of the provider's."""
        return self.tokens_equal and all(stage.passed and stage.on_gpu for stage in self.stages.values())


def exact_graph(path: Path) -> Any:
    """A graph file as an onnx.ModelProto without weights that computes in float32 throughout."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    set_exact(model)
    widen(model)
    return model


class ExactProcessorBackend(OrtBackend):
    """The package's graphs in float32 on the processor."""

    def _open(self, stage: str) -> Any:
        path = self.folder / self.files[stage]
        return open_graph(exact_graph(path), path.parent)


class ExactWebGpuBackend(OrtBackend):
    """The package's graphs in float32 on the provider, with a profile of each written into ``scratch``."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], scratch: Path) -> None:
        super().__init__(folder, manifest, providers=[NAME], threads=1)
        self.scratch = scratch

    def _open(self, stage: str) -> Any:
        path = self.folder / self.files[stage]
        options = self._ort.SessionOptions()
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(self.scratch / stage)
        assert self._webgpu is not None
        return self._webgpu.session_of(exact_graph(path), path.parent, options)

    def placed(self) -> dict[str, tuple[int, Counter[str]]]:
        """By stage: nodes that ran on the provider, and operators that ran elsewhere. Ends the profiles."""
        return {stage: placement(Path(self._session(stage).end_profiling())) for stage in self.files}


def placement(profile: Path) -> tuple[int, Counter[str]]:
    """Nodes on the provider and operators elsewhere, of a profile that ONNX Runtime wrote; a node counts once."""
    nodes = {
        event["name"]: event["args"]
        for event in json.loads(profile.read_text(encoding="utf-8"))
        if event.get("cat") == "Node" and "provider" in event.get("args", {})
    }
    away = Counter(node["op_name"] for node in nodes.values() if node["provider"] != PROVIDER)
    return len(nodes) - away.total(), away


def check(package: Path) -> Checked:
    """Ask a package two questions on both sides: one with a picture, one in two calls where it takes that.

    Raises:
        MachineError: the provider does not start here.
        EdgeproofError: the package cannot be opened.
    """
    plain = open_candidate(package, ONNX.runtime_name)
    here = replace(plain, backend=ExactProcessorBackend(plain.folder, plain.manifest, threads=1))
    with tempfile.TemporaryDirectory(prefix="edgeproof-webgpu-") as scratch:
        backend = ExactWebGpuBackend(plain.folder, plain.manifest, Path(scratch))
        asked = questions(here.processor, 2, here.limits.context, STEPS)
        try:
            compared = [measurement for question in asked for measurement in _compare(here, backend, question)]
        except Exception as error:  # whatever a kernel says; it is the result
            return Checked(package.name, {}, False, first_line(error))
        placed = backend.placed()
        backend.close()
    return Checked(package.name, _stages(compared, placed, here), _tokens_equal(compared))


def _compare(here: Candidate, backend: OrtBackend, question: Any) -> Sequence[Measurement]:
    expected = record(here.backend, here.processor, here.limits, question, STEPS)
    there = replace(here, backend=backend)
    forced = expected.arrays["greedy_ids"]
    return compare_recordings(expected, record(backend, there.processor, there.limits, question, STEPS, forced))


def _stages(
    compared: Sequence[Measurement], placed: Mapping[str, tuple[int, Counter[str]]], here: Candidate
) -> dict[str, Stage]:
    comparison = Comparison(NAME, STANDARD, "processor", PROVIDER, tuple(compared))
    family = str(here.manifest["family"])
    stages = {}
    for stage in STAGES:
        own = [measurement for measurement in compared if measurement.stage == stage]
        figures = [m.metrics["relative_max"] for m in own if "relative_max" in m.metrics]
        verdicts = {judge_measurement(measurement, comparison, family, None).verdict for measurement in own}
        on_gpu, elsewhere = placed.get(stage, (0, Counter()))
        stages[stage] = Stage(max(figures, default=None), bool(own) and verdicts == {Verdict.PASS}, on_gpu, dict(elsewhere))
    return stages


def _tokens_equal(compared: Sequence[Measurement]) -> bool:
    said = [measurement.series for measurement in compared if measurement.probe == "greedy_ids"]
    return bool(said) and all(series["reference"] == series["candidate"] for series in said)
