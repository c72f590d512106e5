"""A package's graphs as ONNX Runtime sessions, one a stage, opened when first used, and runs of those without a cache."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.backends.base import Arrays, closed
from runtime_py.backends.onnx_files import stage_files
from runtime_py.backends.ort_inputs import DTYPES, checked, refuse_other_inputs, taken
from runtime_py.backends.ort_providers import CPU, DEVICES, available, find_cuda, refuse_bytes, refuse_old
from runtime_py.backends.ort_run_errors import run_errors
from runtime_py.backends.ort_session import open_session
from runtime_py.backends.records import INT8_CACHE, MANY_ROWS, ONNX
from runtime_py.backends.stage_sessions import StageSessions
from runtime_py.backends.webgpu import PROVIDER as WEBGPU
from runtime_py.backends.webgpu import WebGpu, full_name, webgpu
from runtime_py.contracts import CONNECTOR, DECODER, VISION, StageContract
from runtime_py.errors import MachineError, PackageError, UsageError

SHRINK_AFTER = (VISION, CONNECTOR)
"""Stages whose activations are given back after each run: they are large and run once a picture."""


class OrtStages:
    """Sessions of a package's graphs on one provider; what `runtime_py.backends.ort.OrtBackend` begins with.

    Args:
        folder: the package.
        manifest: its manifest.json; ``backends.onnx.stages`` names the files.
        providers: execution providers in order of preference, ``webgpu`` for the WebGPU provider; the processor alone by
            default.
        threads: threads inside an operator; 0 lets ONNX Runtime choose.

    Raises:
        MachineError: ONNX Runtime is missing, older than `ort_providers.LOWEST`, or has no such provider; or cannot keep the
            cache in bytes that the package has.
        PackageError: the package has no ONNX graphs.
        UsageError: WebGPU's provider is wanted beside others.
    """

    name = ONNX.runtime_name

    def __init__(
        self, folder: Path, manifest: Mapping[str, Any], providers: Sequence[str] | None = None, threads: int = 0
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MachineError(
                "ONNX Runtime is not installed", "the module onnxruntime", "pip install 'edgeproof[onnx]'"
            ) from error
        refuse_old(onnxruntime.__version__)
        self._ort = onnxruntime
        self.folder = folder
        self.threads = threads
        wanted = [full_name(name) for name in providers or (CPU,)]
        if WEBGPU in wanted and len(set(wanted)) > 1:
            raise UsageError(f"{WEBGPU} beside other providers", "webgpu alone", "give one --provider")
        self._webgpu: WebGpu | None = webgpu(onnxruntime) if WEBGPU in wanted else None
        self.providers = [WEBGPU, CPU] if self._webgpu else available(onnxruntime, wanted)
        if ONNX.block(manifest).get("cache") == INT8_CACHE:
            refuse_bytes(onnxruntime.__version__, self.providers)
        self.files = stage_files(folder, manifest)
        self.contracts = {stage: StageContract.from_json(value) for stage, value in manifest["contracts"].items()}
        if self.providers[0] != CPU:  # only the processor has its operators
            self.files.pop(MANY_ROWS, None)
        if MANY_ROWS in self.files:
            self.contracts[MANY_ROWS] = self.contracts[DECODER]
        self._sessions = StageSessions(self._open)
        self._dtypes: dict[str, dict[str, Any]] = {}
        self._closed = False
        if self._device() == "cuda":
            find_cuda(onnxruntime)

    def load(self) -> None:
        """Open every stage now, rather than when first used; on the processor side by side.

        Raises:
            MachineError: the first provider does not start here.
            PackageError: a graph cannot be loaded.
        """
        self.open_ahead(self._opened)
        for stage in self._opened:
            self._session(stage)

    @property
    def _opened(self) -> list[str]:
        """Stages that may be opened before they are run."""
        return list(self.files)

    def open_ahead(self, stages: Collection[str]) -> None:
        """See runtime_py.backends.base.OpensAhead. A device is given one stage at a time, when it is run."""
        if self.providers[0] == CPU and not self._closed:
            wanted = set(stages) | ({MANY_ROWS} if DECODER in stages else set())
            self._sessions.open_ahead(stage for stage in self._opened if stage in wanted)

    def run(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run a cache-less stage; keys are contract names, floats are float32.

        Raises:
            PackageError: an input does not fit the contract, or the graph fails.
            MachineError: memory or the device gives out.
        """
        session = self._session(stage)
        feeds = self._feeds(stage, inputs)
        options = None
        if stage in SHRINK_AFTER:
            options = self._ort.RunOptions()
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        names = [output.name for output in self.contracts[stage].outputs]
        with run_errors(stage):
            values = session.run(names, feeds, options)
        return {name: widened(value) for name, value in zip(names, values, strict=True)}

    def release(self) -> None:
        """Drop all sessions and the memory they hold; each opens again when its stage is run."""
        self._dtypes.clear()
        self._sessions.clear()

    def close(self) -> None:
        """Drop all sessions and the memory they hold."""
        self._closed = True
        self.release()

    def _device(self) -> str:
        return DEVICES.get(self.providers[0], "cpu")

    def _session(self, stage: str) -> Any:
        if self._closed:
            raise closed(self.name)
        return self._sessions(stage)

    def _open(self, stage: str) -> Any:
        if stage not in self.files:
            raise PackageError(
                f"{self.folder} has no graph of the stage {stage}", "one of " + ", ".join(self.files), "export it again"
            )
        path = self.folder / self.files[stage]
        session = open_session(self._ort, path, self.providers, self.threads, self._webgpu, parallel=stage == DECODER)
        refuse_other_inputs(path, session, self.contracts[stage])
        return session

    def _feeds(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        session = self._session(stage)
        if stage not in self._dtypes:
            self._dtypes[stage] = {name: DTYPES[value.type] for name, value in taken(session).items()}
        return checked(self.contracts[stage], stage, self._dtypes[stage], inputs)


def widened(value: np.ndarray) -> np.ndarray:
    """float16 as float32, anything else as it is."""
    return value.astype(np.float32) if value.dtype == np.float16 else value
