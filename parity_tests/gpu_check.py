"""One command for a machine with an NVIDIA GPU: engines and ONNX graphs of a package against PyTorch on the same GPU.

    python -m parity_tests gpu-check --package out --reference ./checkpoint --report-dir report

Every runner answers the same questions as the float32 reference that holds the package's own weights, and every stage is
timed beside PyTorch eager in float16. What cannot run is written as not run, with the reason, and never as passed.
"""

from __future__ import annotations

import logging
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parity_tests.gpu_together import step_logits_together, why_not_together
from parity_tests.judging.probes import ALWAYS, base_name
from parity_tests.report.gpu_report import Report, Row, Time
from runtime_py.backends.base import LoadsAhead
from runtime_py.backends.record import RuntimeBackend
from runtime_py.backends.records import ONNX, TENSORRT
from runtime_py.contracts import DECODER, STAGES
from runtime_py.errors import ExitCode, MachineError

if TYPE_CHECKING:
    from parity_tests.check.candidate import Candidate
    from parity_tests.judging.probes import Question, Recording
    from parity_tests.reference.reference import TorchBackend
    from runtime_py.backends.base import Arrays, Backend
    from runtime_py.generation.session import SessionLimits
    from runtime_py.preprocess.base import Processor

log = logging.getLogger("edgeproof.parity")

NO_DEVICE = "no CUDA device"
NOT_RUN = "not run"
CUDA = "cuda"
ENGINES = TENSORRT.files
RUNNERS: dict[str, tuple[RuntimeBackend, tuple[str, ...]]] = {
    ENGINES: (TENSORRT, ()),
    "onnxruntime CUDA": (ONNX, ("CUDAExecutionProvider",)),
    "onnxruntime TensorRT": (ONNX, ("TensorrtExecutionProvider", "CUDAExecutionProvider")),
    "onnxruntime WebGPU": (ONNX, ("webgpu",)),
}
"""What is checked: a runtime backend, and for ONNX Runtime its execution providers."""

STEP, TOGETHER = "step_logits", ", several at a time"
"""The probe of answers that share decoder calls, and what is added to the runner's name."""

PREFILL, DECODE = "decoder prefill", "decoder step"
CALLS = (*(stage for stage in STAGES if stage != DECODER), PREFILL, DECODE)
"""What is timed."""

STEPS = 16
WARM, TIMED = 3, 20


def check(package: Path, checkpoint: Path | None) -> Report:
    """Run everything that can run here.

    Raises:
        EdgeproofError: the package or the checkpoint cannot be read.
    """
    from parity_tests.judging.environment import environment
    from runtime_py import package as packages

    manifest = packages.read(package).manifest
    device = _device_name()
    if not device or checkpoint is None:
        reason = NO_DEVICE if not device else "no checkpoint was named with --reference"
        rows = tuple(row for runner in RUNNERS for row in _rows_not_run(runner, reason))
        times = tuple(time for runner in RUNNERS for time in _times_not_run(runner, reason))
    else:
        rows, times = _on_device(package, checkpoint)
    name = package.resolve().name
    made_with = environment(manifest) | (device_facts() if device else {})
    return Report(name, device or NO_DEVICE, rows, times, made_with, int(_exit_code(rows)))


def _exit_code(rows: Sequence[Row]) -> ExitCode:
    """5 when anything failed, 7 when the engines did not run, else 0; runners that are not installed are named only."""
    if any(row.status == "fail" for row in rows):
        return ExitCode.PARITY_FAILED
    ran = any(row.runner == ENGINES and row.status != NOT_RUN for row in rows)
    return ExitCode.OK if ran else ExitCode.ENVIRONMENT


def _device_name() -> str:
    """The GPU that the reference can run on, or ""."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def device_facts() -> dict[str, str]:
    """Compute capability, CUDA and driver version of the GPU that the reference runs on."""
    import torch

    major, minor = torch.cuda.get_device_capability(0)
    facts = {"compute capability": f"{major}.{minor}", "torch's CUDA": str(torch.version.cuda)}
    program = shutil.which("nvidia-smi")
    if program is not None:
        query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
        facts |= {"driver": said[0]} if said else {}
    return facts


def _on_device(package: Path, checkpoint_folder: Path, device: str = CUDA) -> tuple[tuple[Row, ...], tuple[Time, ...]]:
    """Every runner that this machine has; ``device`` is where the reference runs."""
    import torch

    from parity_tests.check.candidate import open_candidate
    from parity_tests.check.package_questions import questions
    from parity_tests.reference.checkpoint_side import open_checkpoint
    from parity_tests.reference.reference import TorchBackend

    checkpoint = open_checkpoint(checkpoint_folder)
    on_processor = open_candidate(package, ONNX.runtime_name)
    asked = questions(on_processor.processor, 3, on_processor.limits.context, STEPS)
    eager = TorchBackend(checkpoint.spec, checkpoint.weights, torch.float16, device)
    shown = next(question for question in asked if question.pictures)
    calls = recorded_calls(eager, on_processor.processor, on_processor.limits, shown)
    eager_times = time_calls(eager, calls)
    eager.close()
    rows: list[Row] = []
    times: list[Time] = []
    for runner, (record, providers) in RUNNERS.items():
        missing, candidate = _open(on_processor, package, record, providers)
        if candidate is None:
            rows += _rows_not_run(runner, missing)
            times += _times_not_run(runner, missing)
            continue
        try:
            rows += _compare(runner, candidate, checkpoint, asked, device)
            measured = time_calls(candidate.backend, calls)
            times += [Time(runner, call, "measured", measured[call], eager_times[call]) for call in CALLS]
        except Exception as error:  # a runner that breaks is a row, not the end of the others
            log.debug("%s broke", runner, exc_info=True)
            rows.append(Row(runner, "", "run", "fail", reason=f"{type(error).__name__}: {error}"))
            times += _times_not_run(runner, "it broke")
        finally:
            candidate.backend.close()
    return tuple(rows), tuple(times)


def _open(
    base: Candidate, package: Path, record: RuntimeBackend, providers: tuple[str, ...]
) -> tuple[str, Candidate | None]:
    """The package on one runner with everything loaded; or why this machine or this package has no such runner."""
    from parity_tests.backends.registry import examiner_of
    from runtime_py import package as packages
    from runtime_py.backends.choice import open_backend
    from runtime_py.package import trust

    if not record.block(base.manifest):
        return f"the package holds no {record.files}", None
    opened = packages.read(package)
    trust.require(opened, record.runtime_name)
    try:
        backend = open_backend(opened, record.runtime_name, providers=providers)
        if isinstance(backend, LoadsAhead):
            backend.load()
    except MachineError as error:
        return error.what, None
    return "", replace(base, examiner=examiner_of(record), backend=backend)


def _compare(runner: str, candidate: Candidate, checkpoint: Any, asked: Sequence[Question], device: str) -> list[Row]:
    """One runner against the reference with the same stored weights, every probe of every question."""
    from parity_tests.judging.compare import compare_recordings
    from parity_tests.judging.judge import judge_measurement
    from parity_tests.judging.results import Comparison
    from parity_tests.reference.checkpoint_side import is_quantised, reference, stored_reference

    stored = stored_reference(checkpoint, candidate, device)
    baseline = stored or reference(checkpoint.spec, checkpoint.weights, device)
    quantised = is_quantised(candidate.assignments())
    standard = candidate.implementation_standard() if quantised else candidate.float_standard()
    rows, recordings = [], []

    def judge(name: str, expected: Recording, said: Recording, probes: Collection[str] = ALWAYS) -> None:
        measurements = tuple(each for each in compare_recordings(expected, said) if base_name(each.probe) in probes)
        comparison = Comparison("gpu", standard, "reference", name, measurements, expected.question)
        for measurement in measurements:
            judged = judge_measurement(measurement, comparison, checkpoint.spec.family, None)
            metrics = measurement.metrics
            rows.append(
                Row(
                    name,
                    expected.question,
                    measurement.probe,
                    str(judged.verdict),
                    metrics.get("max_abs"),
                    metrics.get("cosine"),
                    judged.describe() if judged.broken or not metrics else "",
                )
            )

    for question in asked:
        expected = _record(baseline, candidate, question, None)
        said = _record(candidate.backend, candidate, question, expected.arrays["greedy_ids"])
        recordings.append((expected, said))
        judge(runner, expected, said)
    baseline.close()
    reason = why_not_together(candidate.backend, len(asked))
    if reason:
        return [*rows, Row(runner + TOGETHER, "", STEP, NOT_RUN, reason=reason)]
    fed = [expected.arrays["greedy_ids"] for expected, _ in recordings]
    made = step_logits_together(candidate.backend, candidate.processor, candidate.limits, asked, fed)
    for (expected, said), logits in zip(recordings, made, strict=True):
        judge(runner + TOGETHER, expected, replace(said, arrays={**said.arrays, STEP: logits}), (STEP,))
    return rows


def _record(backend: Backend, candidate: Candidate, question: Question, forced: np.ndarray | None) -> Recording:
    from parity_tests.judging.probes import record

    return record(backend, candidate.processor, candidate.limits, question, STEPS, forced)


def recorded_calls(
    reference: TorchBackend, processor: Processor, limits: SessionLimits, question: Question
) -> dict[str, Arrays]:
    """What every call of `CALLS` was given on the way from a picture to the second token of the answer."""
    from runtime_py.generation.session import Session

    session = Session(reference, processor, limits)
    with reference.watch() as asked:
        images, features = session.encode_images(question.pictures)
        layout = processor.layout(question.input_ids, images)
        logits = session.prefill(session.merge(layout, features), layout, "last")
    with reference.watch() as answered:
        session.step(int(np.argmax(logits[0, -1])))
    calls: dict[str, Arrays] = {stage: asked.calls[stage][0] for stage in STAGES if stage != DECODER}
    return calls | {PREFILL: asked.calls[DECODER][0], DECODE: answered.calls[DECODER][0]}


def time_calls(backend: Backend, calls: Mapping[str, Arrays]) -> dict[str, float]:
    """Median milliseconds of every call, with the inputs of `recorded_calls`."""
    times = {name: median_ms(partial(backend.run, name, inputs)) for name, inputs in calls.items() if name in STAGES}
    prompt, step = calls[PREFILL], calls[DECODE]
    tokens = prompt["inputs_embeds"].shape[1]
    last = np.array([-1], np.int64)
    times[PREFILL] = median_ms(lambda: backend.forward(backend.start(tokens), prompt, last))
    state = backend.start(tokens + WARM + TIMED)
    backend.forward(state, prompt, last)
    times[DECODE] = median_ms(lambda: backend.forward(state, step, last))
    return times


def median_ms(call: Callable[[], object]) -> float:
    """Median of TIMED calls after WARM ones. Every call ends with its results in host memory, so none is cut short."""
    for _ in range(WARM):
        call()
    seconds = []
    for _ in range(TIMED):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


def _rows_not_run(runner: str, reason: str) -> list[Row]:
    return [Row(runner, "", probe, NOT_RUN, reason=reason) for probe in ALWAYS]


def _times_not_run(runner: str, reason: str) -> list[Time]:
    return [Time(runner, call, NOT_RUN, reason=reason) for call in CALLS]
