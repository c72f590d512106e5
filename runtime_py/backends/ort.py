"""ONNX Runtime as a `Backend`: sessions opened when first used, one key/value buffer per sequence, written in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.backends.base import Arrays, closed
from runtime_py.backends.decoder_library import DecoderLibrary, decoder_library
from runtime_py.backends.logit_rows import logit_rows
from runtime_py.backends.onnx_files import stage_files
from runtime_py.backends.ort_decoder import LOGITS, CacheBuffers, DecoderCalls
from runtime_py.backends.ort_inputs import DTYPES, PAST, checked, refuse_other_inputs, taken
from runtime_py.backends.ort_providers import CPU, DEVICES, available, find_cuda, refuse_bytes, refuse_old
from runtime_py.backends.ort_rows import OrtRow, RowPool, decode_rows, rounds_over_rows
from runtime_py.backends.ort_session import open_session
from runtime_py.backends.page_by_page import zeros
from runtime_py.backends.records import INT8_CACHE, MANY_ROWS, ONNX
from runtime_py.backends.stage_sessions import StageSessions
from runtime_py.backends.webgpu import PROVIDER as WEBGPU
from runtime_py.backends.webgpu import WebGpu, full_name, webgpu
from runtime_py.contracts import CONNECTOR, DECODER, VISION, StageContract, TensorContract
from runtime_py.errors import MachineError, PackageError, UsageError
from runtime_py.memory import require_bytes

SHRINK_AFTER = (VISION, CONNECTOR)
"""Stages whose activations are given back after each run: they are large and run once a picture."""


@dataclass
class OrtState:
    """One sequence: buffers (1, kv_heads, capacity, head_dim) by input name, filled up to ``length``."""

    length: int
    capacity: int
    buffers: CacheBuffers = field(repr=False)


class OrtBackend:
    """Runs the ONNX graphs of a package.

    Args:
        folder: the package.
        manifest: its manifest.json; ``backends.onnx.stages`` names the files.
        providers: execution providers in order of preference, ``webgpu`` for the WebGPU provider; the processor alone by
            default.
        threads: threads inside an operator; 0 lets ONNX Runtime choose.
        own_code: whether the package's decoder library may run (`runtime_py.package.trust`).

    Attributes:
        before_call: see runtime_py.backends.base.Announcing.
        library: the decoder library; None where the package has none, or it does not run here, as ``library_missing`` says.

    Raises:
        MachineError: ONNX Runtime is missing, older than `ort_providers.LOWEST`, or has no such provider; or cannot keep the
            cache in bytes that the package has.
        PackageError: the package has no ONNX graphs.
        UsageError: WebGPU's provider is wanted beside others.
    """

    name = ONNX.runtime_name

    def __init__(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        providers: Sequence[str] | None = None,
        threads: int = 0,
        own_code: bool = False,
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
        self._least_sequences = 0
        if MANY_ROWS in self.files:
            self.contracts[MANY_ROWS] = self.contracts[DECODER]
            self._least_sequences = ONNX.block(manifest)[MANY_ROWS]["least_sequences"]
        self.own_code = own_code
        self.before_call: Callable[[], None] = lambda: None
        self.library, self.library_missing = decoder_library(
            folder, manifest, threads, own_code, self.providers[0], self._announce
        )
        self._sessions = StageSessions(self._open)
        self._calls: dict[str, DecoderCalls] = {}
        self._earlier = 0.0
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
        self.expect(self._opened)
        for stage in self._opened:
            self._session(stage)

    @property
    def _opened(self) -> list[str]:
        """Stages that are opened ahead: not the decoder that the library stands for."""
        spared = {DECODER} if self.library is not None else set()
        return [stage for stage in self.files if stage not in spared]

    def expect(self, stages: Collection[str]) -> None:
        """See runtime_py.backends.base.OpensAhead. A device is given one stage at a time, when it is run."""
        if self.providers[0] == CPU and not self._closed:
            expected = set(stages) | ({MANY_ROWS} if DECODER in stages else set())
            self._sessions.expect(stage for stage in self._opened if stage in expected)

    def run(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run a cache-less stage; keys are contract names, floats are float32.

        Raises:
            PackageError: an input does not fit the contract.
        """
        session = self._session(stage)
        feeds = self._feeds(stage, inputs)
        options = None
        if stage in SHRINK_AFTER:
            options = self._ort.RunOptions()
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        names = [output.name for output in self.contracts[stage].outputs]
        return {name: widened(value) for name, value in zip(names, session.run(names, feeds, options), strict=True)}

    def start(self, capacity: int) -> OrtState:
        """An empty cache of ``capacity`` positions on the provider's device."""
        device = self._device()
        shapes = {name: ((1, heads, capacity, width), dtype) for name, ((heads, width), dtype) in self._caches().items()}
        total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())
        if device == "cpu":
            require_bytes(total, f"a cache of {capacity} positions", "export with a smaller --context")
        make = self._ort.OrtValue.ortvalue_from_numpy
        arrays = {name: zeros(*given) for name, given in shapes.items()}
        made = {name: make(array, device, 0) for name, array in arrays.items()}
        return OrtState(0, capacity, CacheBuffers(made, arrays if device == "cpu" else {}))

    def forward(self, state: Any, inputs: Arrays, logit_positions: np.ndarray) -> np.ndarray:
        """Feed tokens; see `runtime_py.backends.base.Backend.forward`.

        Raises:
            UsageError: the tokens do not fit into the cache.
        """
        return self._fed(state, inputs, logit_positions, DECODER)

    def read(self, state: Any, inputs: Arrays, logit_positions: np.ndarray) -> np.ndarray:
        """See runtime_py.backends.base.ReadsPrompts; the same as `forward` where the package has one decoder."""
        return self._fed(state, inputs, logit_positions, MANY_ROWS if MANY_ROWS in self.files else DECODER)

    def _fed(self, state: Any, inputs: Arrays, logit_positions: np.ndarray, decoder: str) -> np.ndarray:
        tokens = inputs["inputs_embeds"].shape[1]
        total = state.length + tokens
        if total > state.capacity:
            raise UsageError(
                f"{tokens} tokens after {state.length} in a cache of {state.capacity} positions",
                f"at most {state.capacity} positions in all",
                "shorten the conversation, or export with a larger --context",
            )
        library = self.library_for(1, state.buffers) if decoder == DECODER else None
        if library is not None:
            logits = library.fed(inputs, np.array([state.length]), state.buffers, np.asarray(logit_positions))
        else:
            inputs = {**inputs, "attention_mask": np.ones((1, total), np.int64)}
            logits = self._decode(inputs, logit_positions, state.buffers, decoder)
        state.length = total
        return logits

    @property
    def decoder_seconds(self) -> float:
        """See runtime_py.backends.base.Clocked."""
        own = self.library.seconds if self.library is not None else 0.0
        return self._earlier + own + sum(calls.seconds for calls in self._calls.values())

    def _announce(self) -> None:
        self.before_call()

    def library_for(self, sequences: int, buffers: CacheBuffers) -> DecoderLibrary | None:
        """The library, where it feeds tokens of so many sequences."""
        takes = self.library is not None and not self._closed and self.library.takes(sequences, buffers)
        return self.library if takes else None

    def _decode(self, inputs: Arrays, positions: np.ndarray, buffers: CacheBuffers, decoder: str) -> np.ndarray:
        """One call of a decoder over cache buffers that it writes in place; float32 logits of the positions."""
        calls = self._decoder(decoder)
        asked = logit_rows(calls.inputs, positions, inputs["inputs_embeds"].shape[1])
        outputs = (len(inputs["inputs_embeds"]), asked.count)
        return asked.chosen(widened(calls(self._feeds(decoder, inputs) | asked.feeds, outputs, buffers)))

    def _decode_together(self, inputs: Arrays, lengths: np.ndarray, buffers: CacheBuffers) -> np.ndarray:
        """The same for a token of each of several sequences, through what is fastest for so many."""
        last = np.array([-1], np.int64)
        library = self.library_for(len(lengths), buffers)
        if library is not None:
            return library.fed(inputs, lengths, buffers, last)
        mask = (np.arange(lengths.max() + 1) <= lengths[:, None]).astype(np.int64)
        many = MANY_ROWS in self.files and len(lengths) >= self._least_sequences
        return self._decode({**inputs, "attention_mask": mask}, last, buffers, MANY_ROWS if many else DECODER)

    def _decoder(self, decoder: str) -> DecoderCalls:
        session = self._session(decoder)
        if decoder not in self._calls or self._calls[decoder].session is not session:
            wide = next(int(tensor.shape[-1]) for tensor in self.contracts[decoder].outputs if tensor.name == LOGITS)
            make = self._ort.OrtValue.ortvalue_from_numpy
            self._calls[decoder] = DecoderCalls(session, make, wide, self._announce)
        return self._calls[decoder]

    def rewind(self, state: OrtState | OrtRow, length: int) -> None:
        """Forget every position from ``length`` on."""
        if not 0 <= length <= state.length:
            raise UsageError(f"rewind to {length}", f"between 0 and {state.length}", "ask for fewer positions")
        state.length = length

    def alone(self) -> str:
        """See runtime_py.backends.base.Batching."""
        if self._device() != "cpu" or self._webgpu is not None:
            return f"{self.providers[0]} keeps caches where their rows cannot be moved"
        if any(tensor.shape[0] != "batch" for tensor in self.contracts[DECODER].inputs if tensor.name.startswith(PAST)):
            return "the decoder's graph holds one sequence"
        if any(rounds_over_rows(self.folder / self.files[name]) for name in (DECODER, MANY_ROWS) if name in self.files):
            return "the decoder rounds the rows of a call by one scale, so that sequences would change each other's answers"
        return ""

    def start_together(self, count: int, capacity: int) -> list[OrtRow]:
        """See runtime_py.backends.base.Batching."""
        return RowPool(self._ort.OrtValue.ortvalue_from_numpy, self._caches(), count, capacity).rows

    def forward_together(self, states: Sequence[OrtRow], inputs: Sequence[Arrays]) -> list[np.ndarray]:
        """See runtime_py.backends.base.Batching."""
        return decode_rows(self._fed_inputs, states, inputs, self._decode_together)

    def copy_prefix(self, source: OrtRow, target: OrtRow, length: int) -> None:
        """See runtime_py.backends.base.Batching."""
        source.pool.copy(source, target, length)

    def release(self) -> None:
        """Drop all sessions and the memory they hold; each opens again when its stage is run."""
        for calls in self._calls.values():
            calls.forget()
            self._earlier += calls.seconds
        self._calls.clear()
        self._dtypes.clear()
        self._sessions.clear()

    def close(self) -> None:
        """Drop all sessions and the memory they hold."""
        self._closed = True
        self.release()

    @cached_property
    def _fed_inputs(self) -> list[TensorContract]:
        """What a decoder call is fed, without caches."""
        return [tensor for tensor in self.contracts[DECODER].inputs if not tensor.name.startswith(PAST)]

    def _caches(self) -> dict[str, tuple[tuple[int, int], np.dtype[Any]]]:
        """Heads and width of each half of a layer's cache, and its dtype, by input name."""
        if self.library is not None:
            return self.library.caches
        caches = [value for value in self._session(DECODER).get_inputs() if value.name.startswith(PAST)]
        return {value.name: ((value.shape[1], value.shape[3]), np.dtype(DTYPES[value.type])) for value in caches}

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
