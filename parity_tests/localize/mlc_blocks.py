"""What the blocks inside a stage of an MLC package return, from a library compiled for that question.

The shipped libraries return stages only. The same Relax module, with a function for one stage's blocks, is built for
this machine from the package's own record (sizes, storage of every layer, limits) and run on the package's own weight files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from export.backends.mlc.compile_process import LibraryRequest, compile_apart
from export.backends.mlc.overview import make_overview
from export.backends.mlc.package_parts import declared_parameters
from export.backends.mlc.schemes import scheme_of
from export.backends.mlc.stock_engine import stock_engine
from export.compilation.host import host_place
from export.modules.build import layer_shapes
from export.quantisation.spec import Assignment, Storage
from export.specs import ModelSpec
from parity_tests.check.candidate import Candidate
from parity_tests.check.mapped_mlc import MappedWeights
from runtime_py.backends.base import Arrays
from runtime_py.backends.mlc import SEQUENCE, MlcBackend
from runtime_py.backends.processor import fastest_variant
from runtime_py.backends.records import HOST_KERNELS, MLC
from runtime_py.contracts import DECODER, EMBED
from runtime_py.preprocess.base import Processor
from targets.base import Limits


class MlcBlocks(MlcBackend):
    """A package opened with a library that has the function ``<stage>_blocks``.

    Args:
        library: compiled here from the package's own module; no file of the package.
        kernels: of that library, by variant.
    """

    def __init__(
        self, folder: Path, manifest: Mapping[str, Any], library: Path, kernels: Mapping[str, Path] | None = None
    ) -> None:
        self._compiled, self._compiled_kernels = library, kernels or {}
        super().__init__(folder, manifest)

    def _library(self, _folder: Path, _manifest: Mapping[str, Any], _block: Mapping[str, Any]) -> Path:
        return self._compiled

    def _kernels(self, _folder: Path, _manifest: Mapping[str, Any], _block: Mapping[str, Any]) -> Path | None:
        variant = fastest_variant(self._compiled_kernels)
        return None if variant is None else self._compiled_kernels[variant]

    def block_outputs(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """Block name to float32 output, in running order; the decoder runs on an empty cache."""
        if stage == EMBED:
            calls = [[np.ascontiguousarray(inputs["input_ids"].reshape(-1), np.int32)]]
        elif stage == DECODER:
            return self._decoder_blocks(inputs)
        else:
            first, *sides = self.contracts[stage].inputs
            rest = [self._input(np.asarray(inputs[tensor.name]), tensor.dtype) for tensor in sides]
            calls = [[self._input(image[None], first.dtype), *rest] for image in inputs[first.name]]
        made = [self._blocks(stage, *call) for call in calls]
        return {name: np.concatenate([one[name] for one in made]) for name in made[0]}

    def _decoder_blocks(self, inputs: Arrays) -> dict[str, np.ndarray]:
        embeds = np.ascontiguousarray(inputs["inputs_embeds"], self.dtype)
        tokens = embeds.shape[1]
        kinds = {tensor.name: tensor.dtype for tensor in self.contracts[DECODER].inputs}
        sides = [self._input(np.asarray(inputs[name]), kinds[name]) for name in self._sides]
        get, shape = self._tvm.get_global_func, self._tvm.runtime.ShapeTuple
        state = self.start(tokens)
        get("vm.builtin.kv_state_begin_forward")(state.cache, shape([SEQUENCE]), shape([tokens]))
        blocks = self._blocks(DECODER, embeds, *sides, state.cache)
        get("vm.builtin.kv_state_end_forward")(state.cache)
        return blocks

    def _blocks(self, stage: str, *arguments: object) -> dict[str, np.ndarray]:
        tensors = [self._tvm.runtime.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
        values = self._machine[f"{stage}_blocks"](*tensors, self._parameters)
        names = self.metadata["blocks"][stage]
        return {name: value.numpy().astype(np.float32) for name, value in zip(names, values, strict=True)}


class MappedMlcBlocks(MappedWeights, MlcBlocks):
    """The same with weights that stay in their files."""


def block_outputs(candidate: Candidate, spec: ModelSpec, stage: str, inputs: Arrays) -> Mapping[str, np.ndarray]:
    """Outputs of a stage's blocks for the stage's inputs.

    Args:
        spec: of the checkpoint that the package was made from.

    Raises:
        MachineError: apache-tvm is missing or cannot compile.
        PackageError: the package's weights are not those of this model.
    """
    tokens = inputs["inputs_embeds"].shape[1] if stage == DECODER else inputs.get("input_ids", np.empty(0)).size
    with tempfile.TemporaryDirectory(prefix="edgeproof-blocks-") as scratch:
        library = Path(scratch) / "blocks.so"
        compile_apart(request(candidate.manifest, candidate.processor, spec, stage, tokens), host_place(), library)
        kind = MappedMlcBlocks if isinstance(candidate.backend, MappedWeights) else MlcBlocks
        backend = kind(candidate.folder, candidate.manifest, library)
        try:
            made = backend.block_outputs(stage, inputs)
        finally:
            backend.close()
    # a library's table multiplies its rows itself, the reference's leaves that to the stage
    return {name: rows / np.float32(spec.embed.scale) for name, rows in made.items()} if stage == EMBED else made


def built_anew(candidate: Candidate, spec: ModelSpec, library: Path) -> MlcBackend | None:
    """The package opened with its library and kernels compiled anew; None where they have the same bytes as its own.

    Args:
        spec: of the checkpoint that the package was made from.

    Raises:
        MachineError: apache-tvm is missing or cannot compile.
    """
    block = MLC.block(candidate.manifest)
    own = {variant: candidate.folder / path for variant, path in block.get(HOST_KERNELS, {}).items()}
    kernels = {variant: library.with_name(f"{library.stem}-{variant}.so") for variant in own}
    compile_apart(request(candidate.manifest, candidate.processor, spec, "", 0), host_place(), library, kernels)
    pairs = [(candidate.folder / block["host_library"], library), *((own[name], kernels[name]) for name in own)]
    if all(shipped.read_bytes() == made.read_bytes() for shipped, made in pairs):
        return None
    kind = MappedMlcBlocks if isinstance(candidate.backend, MappedWeights) else MlcBlocks
    return kind(candidate.folder, candidate.manifest, library, kernels)


def request(manifest: Mapping[str, Any], processor: Processor, spec: ModelSpec, stage: str, tokens: int) -> LibraryRequest:
    """What to compile: a package's module with the block outputs of a stage, for a call of ``tokens`` at once.

    Args:
        processor: the package's own.
        stage: "" for the library as it was shipped.
    """
    block = MLC.block(manifest)
    scheme = scheme_of(block["quantization"])
    rows = block.get("assignments", manifest["assignments"])
    assignments = {
        layer.name: Assignment(layer, Storage(rows[layer.name]["storage"]), rows[layer.name].get("grid", ""))
        for layer in layer_shapes(spec)
        if layer.name in rows
    }
    limits = Limits(**manifest["limits"])
    overview = make_overview(spec, processor, stock_engine(spec, limits).picture)
    return LibraryRequest(
        name=block["model_lib"],
        model_type=spec.family,
        spec=spec,
        assignments=assignments,
        scheme=scheme,
        limits=replace(limits, prefill_chunk=max(tokens, limits.prefill_chunk)),
        overview=overview,
        parameters=tuple(declared_parameters(spec, assignments, scheme, overview)),
        blocks=stage,
    )
