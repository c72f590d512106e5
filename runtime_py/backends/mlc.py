"""Runs an MLC package on this machine: the phone's weight files and this machine's build of the phone's library.

Functions are those that the phone's engine calls (mlc-ai/mlc-llm, cpp/serve/function_table.cc), and sequences run over the
same paged key/value cache; only the device code differs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.backends.base import Arrays, closed
from runtime_py.backends.mlc_rows import (
    PAGE,
    MlcState,
    PagedSequences,
    Steps,
    side_by_side,
    whole_pages,
)
from runtime_py.backends.mlc_weights import read_weights
from runtime_py.backends.processor import fastest_variant, require_processor
from runtime_py.backends.records import HOST_KERNELS, MLC
from runtime_py.backends.row_pool import ADVICE
from runtime_py.backends.tensor_cache import read_tensor_cache
from runtime_py.backends.tvm_runtime import require_tvm
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, VISION, StageContract
from runtime_py.errors import PackageError, UsageError
from runtime_py.memory import require_bytes
from runtime_py.package.files import listed_file, listed_folder

SEQUENCE = 0
"""Number of the first sequence of a cache, which is the only one of `MlcBackend.start`."""

CACHE_NUMBERS = 5
"""Numbers that a library creates its cache with: sequences, positions, chunk, page, sliding window."""

SPARE_POSITIONS = 160
"""Positions that a library's cache has beyond those it is asked for: the phone's engine throws a running answer out, and
feeds its whole prompt again for every token, while fewer than ten pages are free (mlc-ai/mlc-llm at 79d603f,
cpp/serve/engine_actions/batch_jumpforward.cc, ``CheckMemForJumpForward``)."""


class MlcBackend:
    """Runs the model library of a package, built for this machine, over the weights that the phone reads.

    Args:
        folder: the package.
        manifest: its manifest.json.
        device: only ``cpu`` runs here; a phone runs the device library of the same package.

    Raises:
        MachineError: apache-tvm is not installed, or another version than the library was built with; the library is of
            another processor.
        PackageError: the library or its parameters do not fit the package.
    """

    name = MLC.runtime_name

    def __init__(self, folder: Path, manifest: Mapping[str, Any], device: str = "cpu") -> None:
        if device != "cpu":
            raise UsageError(f"device {device!r} for an MLC package", "cpu", "copy the package to a phone for its GPU")
        block = MLC.block(manifest)
        require_tvm(block["tvm"])
        import tvm

        self._tvm = tvm
        self._sequences = PagedSequences(tvm)
        self.contracts = {name: StageContract.from_json(value) for name, value in manifest["contracts"].items()}
        weights = listed_folder(folder, manifest, block["weights"])
        self.tensors = read_tensor_cache(folder, manifest, block["weights"])
        library = self._library(folder, manifest, block)
        require_processor(library)
        self._machine = self._load(library, self._kernels(folder, manifest, block))
        self.metadata: dict[str, Any] = json.loads(self._machine["_metadata"]())
        # MLC names what is stored, then what is computed in: q4f16_1, q4f32_1, q0f16
        self.dtype = "float16" if "f16" in self.metadata["quantization"] else "float32"
        self.prefill_chunk = int(self.metadata["prefill_chunk_size"])
        self._sides: list[str] = block.get("decoder_sides", [])
        decoder = {tensor.name: tensor for tensor in self.contracts[DECODER].inputs}
        self._steps = Steps([decoder[name] for name in self._sides], block.get("text_selectors"))
        self._parameters = self._load_parameters(weights)

    def _library(self, folder: Path, manifest: Mapping[str, Any], block: Mapping[str, Any]) -> Path:
        """The library that is loaded: the package's own, which its manifest hashed."""
        return listed_file(folder, manifest, block["host_library"])

    def _kernels(self, folder: Path, manifest: Mapping[str, Any], block: Mapping[str, Any]) -> Path | None:
        """Kernels of the library for more instructions than it needs, where this processor has them."""
        files = block.get(HOST_KERNELS, {})
        variant = fastest_variant(files)
        return None if variant is None else listed_file(folder, manifest, files[variant])

    def _load(self, library: Path, kernels: Path | None) -> Any:
        try:
            module = self._tvm.runtime.load_module(str(library))
            if kernels is not None:
                # the machine takes a kernel from the first import that has its name
                own = list(module.imports)
                module.clear_imports()
                for each in (self._tvm.runtime.load_module(str(kernels)), *own):
                    module.import_module(each)
            machine = module["vm_load_executable"]()
            machine["vm_initialization"](1, 0, 2)  # device type kDLCPU, its number, the pooled allocator
        except Exception as error:  # tvm raises RuntimeError, AttributeError and classes of its own
            raise PackageError(
                f"TVM cannot load {library}: {error}", "a library as export wrote it", "export the package again"
            ) from error
        return machine

    def _load_parameters(self, folder: Path) -> Any:
        import tvm_ffi

        try:
            arrays = read_weights(folder, [self.tensors[entry["name"]] for entry in self.metadata["params"]])
        except (KeyError, OSError, ValueError) as error:
            raise PackageError(
                f"{folder} does not hold the library's parameters: {error}",
                "weights and library of one export",
                "export the package again",
            ) from error
        return tvm_ffi.convert([self._tvm.runtime.from_dlpack(array) for array in arrays])

    # stages without a cache

    def run(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run a cache-less stage; images go through the library one at a time."""
        if stage == DECODER or stage not in self.contracts:
            raise UsageError(
                f"stage {stage!r} has no run", f"{VISION}, {CONNECTOR} or {EMBED}", "call forward for the decoder"
            )
        contract = self.contracts[stage]
        output = contract.outputs[0].name
        if stage == EMBED:
            ids = inputs["input_ids"]
            rows = self._call("embed", np.ascontiguousarray(ids.reshape(-1), np.int32))
            return {output: rows.reshape(*ids.shape, -1)}
        first, *sides = contract.inputs
        rest = [self._input(np.asarray(inputs[tensor.name]), tensor.dtype) for tensor in sides]
        images = [self._call(stage, self._input(image[None], first.dtype), *rest) for image in inputs[first.name]]
        return {output: np.concatenate(images)}

    def image_embed(self, picture: np.ndarray) -> np.ndarray:
        """What the phone's engine calls: a uint8 square picture (height, width, 3) to float32 (rows, hidden)."""
        zero = self._tvm.runtime.ShapeTuple([0])
        return self._call("image_embed", np.ascontiguousarray(picture[None], np.uint8), zero, zero, zero, zero)

    def image_embed_slice(self, picture: np.ndarray, vision: Arrays, connector: Arrays) -> np.ndarray:
        """The same for a picture of any grid, with both stages' side inputs by contract name."""
        sides = [
            self._input(np.asarray(given[tensor.name]), tensor.dtype)
            for stage, given in ((VISION, vision), (CONNECTOR, connector))
            for tensor in self.contracts[stage].inputs[1:]
        ]
        return self._call("image_embed_slice", np.ascontiguousarray(picture[None], np.uint8), *sides)

    @staticmethod
    def _input(array: np.ndarray, dtype: str) -> np.ndarray:
        return np.ascontiguousarray(array, np.int32 if dtype == "int64" else np.dtype(dtype))

    # the decoder

    def start(self, capacity: int) -> MlcState:
        """An empty paged cache, of one sequence and without a sliding window."""
        (state,) = self._started(1, capacity, capacity, "export with a smaller --context")
        return state

    def _started(self, count: int, capacity: int, positions: int, advice: str) -> list[MlcState]:
        """Sequences of a new cache that has so many positions for all of them."""
        if self._machine is None:
            raise closed(self.name)
        kept = self.metadata["kv_cache"]
        values = 2 * kept["num_hidden_layers"] * kept["num_key_value_heads"] * kept["head_dim"]
        total = values * (positions + SPARE_POSITIONS) * np.dtype(self.dtype).itemsize
        require_bytes(total, f"a cache of {positions} positions", advice)
        shape = self._tvm.runtime.ShapeTuple
        # sequences, positions, tokens of a call, positions of a page, sliding window
        sizes = (count, positions, max(self.prefill_chunk, count), PAGE, 0)
        cache = self._machine["create_tir_paged_kv_cache"](*(shape([size]) for size in sizes))
        return self._sequences.begin(cache, capacity, count)

    def forward(self, state: MlcState, inputs: Arrays, logit_positions: np.ndarray) -> np.ndarray:
        """Feed tokens to the decoder; more than the library's prefill chunk are fed in several calls.

        Raises:
            PackageError: the tokens do not fit the cache, or their positions are not the cache's own.
        """
        embeds = inputs["inputs_embeds"]
        tokens = embeds.shape[1]
        if state.length + tokens > state.capacity:
            raise PackageError(
                f"{tokens} tokens after {state.length}", f"at most {state.capacity} positions", "start with more capacity"
            )
        if "position_ids" not in self._sides:
            self._check_positions(inputs, state.length, tokens)
        if self._sides:
            return self._feed_routed(state, inputs, np.asarray(logit_positions))
        wanted = np.where(logit_positions < 0, logit_positions + tokens, logit_positions)
        if tokens <= self.prefill_chunk:
            return self._feed(state, embeds, wanted)[:, : len(wanted)]
        logits = np.empty((1, len(wanted), int(self.contracts[DECODER].outputs[0].shape[-1])), np.float32)
        for start, stop in _spans(tokens, self.prefill_chunk):
            inside = np.flatnonzero((wanted >= start) & (wanted < stop))
            here = self._feed(state, embeds[:, start:stop], wanted[inside] - start)
            logits[:, inside] = here[:, : len(inside)]
        return logits

    def _feed(self, state: MlcState, embeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
        tokens, values = embeds.shape[1], np.ascontiguousarray(embeds, self.dtype)
        with self._sequences.fed([state], tokens):
            if tokens == 1 and len(positions) == 1:
                return self._call("decode", values, state.cache)
            chosen = np.ascontiguousarray(positions if len(positions) else [tokens - 1], np.int32)
            return self._call("batch_prefill", values, chosen, state.cache)

    def _feed_routed(self, state: MlcState, inputs: Arrays, logit_positions: np.ndarray) -> np.ndarray:
        """One call with the contract's further decoder inputs, which name rows of just these tokens."""
        tokens = inputs["inputs_embeds"].shape[1]
        if tokens > self.prefill_chunk:
            raise PackageError(f"{tokens} tokens in one call", f"at most {self.prefill_chunk}", "feed smaller chunks")
        positions = np.where(logit_positions < 0, logit_positions + tokens, logit_positions)
        with self._sequences.fed([state], tokens):
            return self._run_decoder(inputs, positions, state.cache)

    def _run_decoder(self, inputs: Arrays, positions: np.ndarray, cache: Any) -> np.ndarray:
        kinds = {tensor.name: tensor.dtype for tensor in self.contracts[DECODER].inputs}
        sides = [self._input(np.asarray(inputs[name]), kinds[name]) for name in self._sides]
        embeds = np.ascontiguousarray(inputs["inputs_embeds"], self.dtype)
        return self._call("run_decoder", embeds, np.ascontiguousarray(positions, np.int32), *sides, cache)

    def _check_positions(self, inputs: Arrays, length: int, tokens: int) -> None:
        positions = inputs.get("position_ids")
        if positions is not None and not np.array_equal(positions.reshape(-1), np.arange(length, length + tokens)):
            raise PackageError(
                "position_ids are not the cache's own",
                f"{length} to {length + tokens - 1}",
                "use a backend that takes positions",
            )

    def rewind(self, state: MlcState, length: int) -> None:
        """Forget every position from ``length`` on."""
        self._sequences.cut(state, length)

    # several sequences

    def why_not_batched(self, count: int) -> str:
        """See runtime_py.backends.base.Batching."""
        return self._steps.why_not_together(self.metadata, count)

    def start_batch(self, count: int, capacity: int) -> list[MlcState]:
        """See runtime_py.backends.base.Batching; all in one paged cache."""
        return self._started(count, capacity, count * whole_pages(capacity), ADVICE)

    def forward_batch(self, states: Sequence[MlcState], inputs: Sequence[Arrays]) -> list[np.ndarray]:
        """See runtime_py.backends.base.Batching."""
        pairs = list(zip(states, inputs, strict=True))
        if not self._steps.are_text(inputs):
            return [self.forward(state, own, np.array([-1]))[0] for state, own in pairs]
        if "position_ids" not in self._sides:
            for state, own in pairs:
                self._check_positions(own, state.length, 1)
        embeds = np.ascontiguousarray(side_by_side(inputs, "inputs_embeds", 0), self.dtype)
        sides = [self._input(array, dtype) for array, dtype in self._steps.joined(inputs)]
        with self._sequences.fed(states, 1):
            return list(self._call(self._steps.function, embeds, *sides, states[0].cache))

    def copy_prefix(self, source: MlcState, target: MlcState, length: int) -> None:
        """See runtime_py.backends.base.Batching; whole pages are shared."""
        self._sequences.share(source, target, length)

    # calls into the library

    def _call(self, name: str, *arguments: Any) -> np.ndarray:
        """Run a function with the package's parameters; the first tensor of its result, where it lies, as float32."""
        if self._machine is None:
            raise closed(self.name)
        tensors = [self._tvm.runtime.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
        result = self._machine[name](*tensors, self._parameters)
        # functions of the decoder return the logits and the cache
        if not hasattr(result, "numpy"):
            result = result[0]
        return np.from_dlpack(result).astype(np.float32, copy=False)

    def close(self) -> None:
        """Drop the parameters and the library."""
        self._parameters = self._machine = None


def _spans(total: int, step: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + step, total)) for start in range(0, total, step))
