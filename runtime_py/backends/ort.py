"""ONNX Runtime as a `Backend`: stages, and a decoder over one key/value buffer per sequence, written in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.backends.base import Arrays, check_rewind
from runtime_py.backends.compiled_stage import Place, where_it_runs
from runtime_py.backends.cuda_driver import CudaDriver
from runtime_py.backends.cuda_rows import CUDA, CudaRows, provider_memory
from runtime_py.backends.decoder_library import DecoderLibrary
from runtime_py.backends.logit_rows import logit_rows
from runtime_py.backends.ort_decoder import LOGITS, CacheBuffers, DecoderCalls
from runtime_py.backends.ort_inputs import DTYPES, PAST
from runtime_py.backends.ort_providers import CPU
from runtime_py.backends.ort_rows import HostRows, OrtRow, rounds_over_rows
from runtime_py.backends.ort_stages import OrtStages, widened
from runtime_py.backends.records import DECODER_LIBRARY, MANY_ROWS, ONNX, VISION_LIBRARY
from runtime_py.backends.row_calls import decode_rows
from runtime_py.backends.small_pages import zeros
from runtime_py.backends.vision_library import VisionLibrary
from runtime_py.contracts import DECODER, VISION, TensorContract
from runtime_py.errors import UsageError
from runtime_py.memory import require_bytes


@dataclass
class OrtState:
    """One sequence: buffers (1, kv_heads, capacity, head_dim) by input name, filled up to ``length``."""

    length: int
    capacity: int
    buffers: CacheBuffers = field(repr=False)


class OrtBackend(OrtStages):
    """Runs the ONNX graphs of a package.

    Args:
        folder, manifest, providers, threads: see `OrtStages`.
        own_code: whether the package's libraries may run (`runtime_py.package.trust`).

    Attributes:
        before_call: see runtime_py.backends.base.CallHook.
        library: the decoder library; None where the package has none, or it does not run here, as ``library_missing`` says.
        vision: the vision library, with ``vision_missing`` alike.

    Raises:
        MachineError, PackageError, UsageError: see `OrtStages`.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        providers: Sequence[str] | None = None,
        threads: int = 0,
        own_code: bool = False,
    ) -> None:
        super().__init__(folder, manifest, providers, threads)
        self._least_sequences = ONNX.block(manifest)[MANY_ROWS]["least_sequences"] if MANY_ROWS in self.files else 0
        self.own_code = own_code
        self.before_call: Callable[[], None] = lambda: None
        here = Place(folder, manifest, own_code, self.providers[0])
        self.library, self.library_missing = where_it_runs(
            here,
            DECODER_LIBRARY,
            lambda: DecoderLibrary(folder, manifest, threads, self._run_hook),
            otherwise=", so answers are slower than they could be",
        )
        self.vision, self.vision_missing = where_it_runs(
            here, VISION_LIBRARY, lambda: VisionLibrary(folder, manifest, threads)
        )
        self._calls: dict[str, DecoderCalls] = {}
        self._earlier = 0.0

    @property
    def _opened(self) -> list[str]:
        """Without graphs whose work a library does."""
        compiled = {DECODER: self.library, VISION: self.vision}
        return [stage for stage in self.files if compiled.get(stage) is None]

    def run(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """See `OrtStages.run`."""
        if stage == VISION and self.vision is not None and not self._closed and self.vision.takes(inputs):
            return self.vision.run(inputs)
        return super().run(stage, inputs)

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
        return self._feed(state, inputs, logit_positions, DECODER)

    def prefill(self, state: Any, inputs: Arrays, logit_positions: np.ndarray) -> np.ndarray:
        """See runtime_py.backends.base.SeparatePrefill; the same as `forward` where the package has one decoder."""
        return self._feed(state, inputs, logit_positions, MANY_ROWS if MANY_ROWS in self.files else DECODER)

    def _feed(self, state: Any, inputs: Arrays, logit_positions: np.ndarray, decoder: str) -> np.ndarray:
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
            logits = library.run(inputs, np.array([state.length]), state.buffers, np.asarray(logit_positions))
        else:
            inputs = {**inputs, "attention_mask": np.ones((1, total), np.int64)}
            logits = self._decode(inputs, logit_positions, state.buffers, decoder)
        state.length = total
        return logits

    @property
    def decoder_seconds(self) -> float:
        """See runtime_py.backends.base.DecoderTimer."""
        own = self.library.seconds if self.library is not None else 0.0
        return self._earlier + own + sum(calls.seconds for calls in self._calls.values())

    def _run_hook(self) -> None:
        self.before_call()

    def library_for(self, sequences: int, buffers: CacheBuffers) -> DecoderLibrary | None:
        """The library, where it takes a token of each of this many sequences."""
        takes = self.library is not None and not self._closed and self.library.takes(sequences, buffers)
        return self.library if takes else None

    def _decode(self, inputs: Arrays, positions: np.ndarray, buffers: CacheBuffers, decoder: str) -> np.ndarray:
        """One call of a decoder over cache buffers that it writes in place; float32 logits of the positions."""
        calls = self._decoder(decoder)
        asked = logit_rows(calls.inputs, positions, inputs["inputs_embeds"].shape[1])
        outputs = (len(inputs["inputs_embeds"]), asked.count)
        return asked.chosen(widened(calls(self._feeds(decoder, inputs) | asked.feeds, outputs, buffers)))

    def _decode_batch(self, inputs: Arrays, lengths: np.ndarray, buffers: CacheBuffers) -> np.ndarray:
        """The same for a token of each of several sequences, through what is fastest for so many."""
        last = np.array([-1], np.int64)
        library = self.library_for(len(lengths), buffers)
        if library is not None:
            return library.run(inputs, lengths, buffers, last)
        mask = (np.arange(lengths.max() + 1) <= lengths[:, None]).astype(np.int64)
        many = MANY_ROWS in self.files and len(lengths) >= self._least_sequences
        return self._decode({**inputs, "attention_mask": mask}, last, buffers, MANY_ROWS if many else DECODER)

    def _decoder(self, decoder: str) -> DecoderCalls:
        session = self._session(decoder)
        if decoder not in self._calls or self._calls[decoder].session is not session:
            wide = next(int(tensor.shape[-1]) for tensor in self.contracts[decoder].outputs if tensor.name == LOGITS)
            make = self._ort.OrtValue.ortvalue_from_numpy
            copies = self._device() == "cpu" and self.providers[0] != CPU
            self._calls[decoder] = DecoderCalls(session, make, wide, self._run_hook, copies)
        return self._calls[decoder]

    def rewind(self, state: OrtState | OrtRow, length: int) -> None:
        """Forget every position from ``length`` on."""
        check_rewind(length, state.length)
        state.length = length

    def why_not_batched(self, count: int) -> str:
        """See runtime_py.backends.base.Batching."""
        if self._webgpu is not None:
            return f"{self.providers[0]} keeps caches where their rows cannot be moved"
        if any(tensor.shape[0] != "batch" for tensor in self.contracts[DECODER].inputs if tensor.name.startswith(PAST)):
            return "the decoder's graph holds one sequence"
        if any(rounds_over_rows(self.folder / self.files[name]) for name in (DECODER, MANY_ROWS) if name in self.files):
            return "the decoder rounds the rows of a call by one scale, so that sequences would change each other's answers"
        return ""

    def start_batch(self, count: int, capacity: int) -> list[OrtRow]:
        """See runtime_py.backends.base.Batching."""
        if self._device() == CUDA:
            driver = CudaDriver()
            return CudaRows(driver, provider_memory(self._ort, driver), self._caches(), count, capacity).rows
        return HostRows(self._ort.OrtValue.ortvalue_from_numpy, self._caches(), count, capacity).rows

    def forward_batch(self, states: Sequence[OrtRow], inputs: Sequence[Arrays]) -> list[np.ndarray]:
        """See runtime_py.backends.base.Batching."""
        return decode_rows(self._decoder_inputs, states, inputs, self._decode_batch)

    def copy_prefix(self, source: OrtRow, target: OrtRow, length: int) -> None:
        """See runtime_py.backends.base.Batching."""
        source.pool.copy(source, target, length)

    def release(self) -> None:
        """Drop all sessions and the memory they hold; each opens again when its stage is run."""
        for calls in self._calls.values():
            calls.forget()
            self._earlier += calls.seconds
        self._calls.clear()
        super().release()

    @cached_property
    def _decoder_inputs(self) -> list[TensorContract]:
        """What a decoder call is fed, without caches."""
        return [tensor for tensor in self.contracts[DECODER].inputs if not tensor.name.startswith(PAST)]

    def _caches(self) -> dict[str, tuple[tuple[int, int], np.dtype[Any]]]:
        """Heads and width of each half of a layer's cache, and its dtype, by input name."""
        if self.library is not None:
            return self.library.caches
        caches = [value for value in self._session(DECODER).get_inputs() if value.name.startswith(PAST)]
        return {value.name: ((value.shape[1], value.shape[3]), np.dtype(DTYPES[value.type])) for value in caches}
