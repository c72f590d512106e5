"""A decoder as machine code, over its graph's own weight files and caches.

ONNX Runtime packs the weights of MatMulNBits anew when a session opens, six bits for every four. The library reads them
as they lie in the package, and keeps keys and values where ONNX Runtime would; so a sequence may be fed by graph and
library in turns. It lies beside the graph, never in its place: where it cannot run, the graph does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.backends import processor
from runtime_py.backends.compiled_stage import CompiledStage, aligned
from runtime_py.backends.ort_decoder import CacheBuffers
from runtime_py.backends.ort_inputs import checked
from runtime_py.backends.records import DECODER_LIBRARY, ONNX
from runtime_py.backends.token_routes import TokenRoutes
from runtime_py.backends.tvm_runtime import require_tvm, tvm_ffi, use_threads
from runtime_py.contracts import DECODER, StageContract
from runtime_py.errors import MachineError, UsageError

STEP, VERIFY, READ, READ_ALL = "step", "verify", "read", "read_all"
"""Functions of a library: a token of each of several sequences; a few tokens of one, in the bits of as many steps, with
logits of all; tokens of one, with logits of the last or of all. Libraries of before have no `VERIFY`."""

MOST_SEQUENCES, MOST_GUESSES, MOST_TOKENS = 16, 16, 512
"""Of one call: what its memory is planned for."""

INPUTS = ("inputs_embeds", "position_ids")


class DecoderLibrary:
    """Runs the decoder of one package.

    Args:
        folder: the package.
        manifest: its manifest.json.
        threads: of a call; 0 leaves it to TVM.
        before_call: called before every call, when all is ready for it.

    Attributes:
        variant: which of the package's libraries runs.
        functions: of the library, by name.
        seconds: inside the library, all calls so far.
        caches: heads and width of each half of a layer's cache, and its dtype, by input name, in the library's order.
        routes: which tokens go through which weights.

    Raises:
        MachineError: TVM's runtime is missing or another version, or no library is for this processor.
        PackageError: library, index and weights do not fit one another.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        threads: int = 0,
        before_call: Callable[[], None] = lambda: None,
    ) -> None:
        block = ONNX.block(manifest)[DECODER_LIBRARY]
        require_tvm(block["tvm"])
        self.variant = chosen_variant(block["libraries"])
        self.seconds, self._threads, self._before_call = 0.0, threads, before_call
        contract = StageContract.from_json(manifest["contracts"][DECODER])
        self._compiled = CompiledStage(folder, manifest, block, self.variant, (STEP, READ, READ_ALL), threads, (VERIFY,))
        self._ffi, self.functions = tvm_ffi(), self._compiled.functions
        with self._compiled.fitting():
            named = self._compiled.index
            self.caches = {
                str(name): ((int(heads), int(width)), np.dtype(kind)) for name, heads, width, kind in named["caches"]
            }
            self._parameters = self._compiled.parameters(named["parameters"])
            self.routes = TokenRoutes(named.get("indices", []), named.get("absent", []))
            self._shared = [tensor for tensor in contract.inputs if tensor.name in named.get("shared", [])]
            fed = {*INPUTS, *named.get("shared", []), *self.routes.given}
            inputs = tuple(tensor for tensor in contract.inputs if tensor.name in fed)
            self._contract, self._dtypes = StageContract(DECODER, inputs, ()), {each.name: each.dtype for each in inputs}

    def takes(self, sequences: int, buffers: CacheBuffers) -> bool:
        """Whether a call of so many sequences over these buffers can be fed through the library."""
        if not 0 < sequences <= MOST_SEQUENCES:
            return False
        known = buffers.tensors is not None  # the arrays were looked at before
        return known or set(self.caches) == set(buffers.arrays)

    def run(
        self, inputs: Mapping[str, np.ndarray], lengths: np.ndarray, buffers: CacheBuffers, positions: np.ndarray
    ) -> np.ndarray:
        """One token of each of several sequences, or any number of one; inputs are checked as a graph's are.

        Args:
            inputs, lengths, buffers: see `decode` and `prefill`.
            positions: indices into the tokens, of those whose logits are wanted; negative ones count from the end.

        Returns:
            float32 logits (sequences, positions, vocabulary).

        Raises:
            PackageError: an input is missing or does not fit the decoder's contract.
            UsageError: image rows in a call of several sequences, or indices that do not fit the tokens.
        """
        inputs = checked(self._contract, DECODER, self._dtypes, inputs)
        tokens = inputs[INPUTS[0]].shape[1]
        self.routes.check(inputs, tokens)
        text = self.routes.text_alone(inputs)
        if tokens == 1 and positions.tolist() in ([-1], [0]) and text:
            return self.decode(inputs, lengths, buffers)
        if len(lengths) > 1:
            raise UsageError(
                f"image rows among one token of each of {len(lengths)} sequences",
                "image rows of one sequence a call",
                "feed prompts one by one",
            )
        return self.prefill(inputs, int(lengths[0]), buffers, positions)

    def decode(self, inputs: Mapping[str, np.ndarray], lengths: np.ndarray, buffers: CacheBuffers) -> np.ndarray:
        """Feed one token of each of n sequences; its keys and values go behind those that are there.

        Args:
            inputs: ``inputs_embeds`` (n, 1, hidden), ``position_ids`` (n, 1) or (axes, n, 1), and what all tokens share.
            lengths: (n,), positions of each that are filled.
            buffers: caches of n sequences.

        Returns:
            float32 logits (n, 1, vocabulary).
        """
        return self._call(STEP, inputs, lengths, buffers)[:, None]

    def prefill(
        self, inputs: Mapping[str, np.ndarray], length: int, buffers: CacheBuffers, positions: np.ndarray
    ) -> np.ndarray:
        """Feed tokens of one sequence, however many; where up to `MOST_GUESSES` all get logits, in the bits of steps.

        Args:
            inputs: ``inputs_embeds`` (1, tokens, hidden), and ``position_ids`` (1, tokens) or (axes, 1, tokens); indices of
                tokens and what all tokens share, where the decoder has them.
            length: positions that are filled.
            buffers: caches of the sequence.
            positions: indices into the tokens, of those whose logits are wanted; negative ones count from the end.

        Returns:
            float32 logits (1, positions, vocabulary).
        """
        embeds, places = (np.asarray(inputs[name]) for name in INPUTS)
        tokens = embeds.shape[1]
        wanted = np.where(positions < 0, positions + tokens, positions)
        parts: list[np.ndarray] = []
        for start in range(0, tokens, MOST_TOKENS):
            stop = min(start + MOST_TOKENS, tokens)
            here = wanted[(wanted >= start) & (wanted < stop)] - start
            function = READ if set(here.tolist()) <= {stop - start - 1} else self._reads_all(tokens, inputs)
            fed = {**inputs, INPUTS[0]: embeds[:, start:stop], INPUTS[1]: places[..., start:stop]}
            indices = self.routes.within(inputs, start, stop) if function != VERIFY else []
            logits = self._call(function, fed, np.array([length + start]), buffers, indices)
            parts.append(logits[np.zeros_like(here) if function == READ else here])
        order = np.argsort(np.argsort(wanted, kind="stable"), kind="stable")
        return np.concatenate(parts)[order][None] if len(parts) > 1 else parts[0][None]

    def _reads_all(self, tokens: int, inputs: Mapping[str, np.ndarray]) -> str:
        """What gives logits of all tokens of a call: a few of them may be guesses, which are to have the bits of steps."""
        few = tokens <= MOST_GUESSES and VERIFY in self.functions
        return VERIFY if few and self.routes.text_alone(inputs) else READ_ALL

    def _call(
        self,
        function: str,
        inputs: Mapping[str, np.ndarray],
        lengths: np.ndarray,
        buffers: CacheBuffers,
        indices: Sequence[np.ndarray] = (),
    ) -> np.ndarray:
        use_threads(self._threads)
        if buffers.tensors is None:
            buffers.tensors = self._ffi.Array([self._compiled.tensor(buffers.arrays[name]) for name in self.caches])
        given = [(inputs[INPUTS[0]], "float32"), (inputs[INPUTS[1]], "int32"), (lengths, "int32")]
        given += [(np.asarray(inputs[tensor.name]), tensor.dtype) for tensor in self._shared]
        given += [(index, "int64") for index in indices]
        tensors = [self._compiled.tensor(aligned(array, np.dtype(kind))) for array, kind in given]
        self._before_call()
        began = time.perf_counter()
        logits = self.functions[function](*tensors, buffers.tensors, self._parameters)
        made: np.ndarray = np.from_dlpack(logits)
        self.seconds += time.perf_counter() - began
        return made


def chosen_variant(libraries: Mapping[str, str]) -> str:
    """The fastest of these that this processor runs.

    Raises:
        MachineError: it runs none.
    """
    chosen = processor.fastest_variant(libraries)
    if chosen is not None:
        return chosen
    raise MachineError(
        f"this processor ({processor.architecture()}) runs none of the package's decoder libraries: {', '.join(libraries)}",
        "x86-64 with AVX2, or arm64 with dot products",
        "export the package on a machine like this one",
    )
