"""The deliberate faults of `parity_tests.laboratory.faults` in a phone's package.

Where an exporter would write a wrong number, the weight files are changed. Where it would write a wrong program, the
library of this machine is compiled anew from the package's own record with that mistake in it: another rotary base, or a
kernel that writes keys and values one position too early.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np

from export.backends.mlc import library as libraries
from export.backends.mlc.compile_process import LibraryRequest, compile_apart
from export.backends.mlc.parameters import GROUP, PER_WORD
from export.compilation.host import host_place
from export.compilation.module_pass import ModulePass
from export.specs import ModelSpec
from parity_tests.check.package_questions import stand_in
from parity_tests.laboratory.early_append import EarlyAppend
from parity_tests.laboratory.faults import Fault, of_pictures
from parity_tests.laboratory.mlc_tamper import manifest_of, replaced, stored, tamper
from parity_tests.laboratory.other_settings import bilinear_resize
from parity_tests.localize.mlc_blocks import request
from runtime_py import package as packages
from runtime_py.backends.records import HOST_KERNELS, MLC
from runtime_py.contracts import DECODER, EMBED, VISION
from runtime_py.model import open_processor

LIBRARY = "own library"
"""What a report says of a fault that is in no weight file."""

ZERO_POINT = 7
"""The code of zero in q4f16_1 and q4f32_1."""


# weight files


def swapped_norms(package: Path) -> None:
    """The second vision block uses its two norms in each other's place."""
    names = [[f"{VISION}.blocks.1.norm{number}.{kind}" for number in (1, 2)] for kind in ("weight", "bias")]
    pairs = [(one, other, stored(package, one), stored(package, other)) for one, other in names]
    if all(np.array_equal(first, second) for _, _, first, second in pairs):
        raise ValueError("the two norms are the same")
    for one, other, first, second in pairs:
        if not np.array_equal(first, second):
            tamper(package, one, lambda _, second=second: second)  # type: ignore[misc]
            tamper(package, other, lambda _, first=first: first)  # type: ignore[misc]


def shifted_positions(package: Path) -> None:
    """The vision encoder's position table begins one patch late."""
    tamper(package, f"{VISION}.positions", lambda table: np.roll(table, 1, axis=0))


def transposed_projection(package: Path) -> None:
    """The second decoder layer's square attention output matrix is stored the wrong way round."""
    name = f"{DECODER}.layers.1.attention.out"
    words, scales = stored(package, f"{name}.q_weight"), stored(package, f"{name}.q_scale")
    turned = dequantised(words, scales).T
    codes, rounded = quantised(turned)
    tamper(package, f"{name}.q_weight", lambda _: codes)
    tamper(package, f"{name}.q_scale", lambda _: rounded.astype(scales.dtype))


def dequantised(words: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 (rows, columns) of a matrix whose width is whole groups."""
    shifts = np.arange(PER_WORD, dtype=np.uint32) * 4
    codes = (words[..., None] >> shifts & 15).reshape(len(words), -1).astype(np.float32) - ZERO_POINT
    return codes * np.repeat(scales.astype(np.float32), GROUP, axis=1)


def quantised(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The words and scales of values rounded to nearest."""
    grouped = values.reshape(len(values), -1, GROUP)
    scales = np.abs(grouped).max(axis=-1) / ZERO_POINT
    steps = np.divide(grouped, scales[..., None], out=np.zeros_like(grouped), where=scales[..., None] > 0)
    codes = (np.rint(steps) + ZERO_POINT).astype(np.uint32).reshape(len(values), -1, PER_WORD)
    shifts = np.arange(PER_WORD, dtype=np.uint32) * 4
    return (codes << shifts).sum(axis=-1, dtype=np.uint32), scales


def changed_down(package: Path, layer: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the scales of a decoder layer's int4 down projection."""
    tamper(package, f"{DECODER}.layers.{layer}.mlp.down.q_scale", change)


def first_everywhere(scales: np.ndarray) -> np.ndarray:
    """The scales are all 1 times the first one's: the codes keep their meaning in one block alone."""
    return np.full_like(scales, scales.flat[0])


def without_one(scales: np.ndarray) -> np.ndarray:
    """One block of hundreds has no scale: it reads as zeros."""
    scales[scales.shape[0] // 2, scales.shape[1] // 2] = 0
    return scales


# libraries


def other_library(package: Path, spec: ModelSpec, change: Callable[[ModelSpec], ModelSpec]) -> None:
    """The package's library of this machine, compiled from another spec.

    Raises:
        ValueError: the change changes nothing.
    """
    if change(spec) == spec:
        raise ValueError("this model has no such number")
    with tempfile.TemporaryDirectory(prefix="edgeproof-library-") as scratch:
        made, kernels = Path(scratch) / "library.so", _kernels(package, Path(scratch))
        compile_apart(replace(_request(package, spec), spec=change(spec)), host_place(), made, kernels)
        _put(package, made, kernels)


def early_library(package: Path, spec: ModelSpec, several: bool) -> None:
    """The package's library with a kernel that writes one position too early: see `EarlyAppend`.

    Raises:
        MachineError: this TVM has another kernel in its place.
    """
    asked, passes = _request(package, spec), libraries.completing_passes

    def with_fault(request: LibraryRequest, place: str) -> list[ModulePass]:
        return [*passes(request, place), EarlyAppend(spec.decoder, request.scheme.model_dtype, several)]

    with tempfile.TemporaryDirectory(prefix="edgeproof-library-") as scratch:
        made, kernels = Path(scratch) / "library.so", _kernels(package, Path(scratch))
        with patch.object(libraries, "completing_passes", with_fault):
            libraries.compile_library(asked, host_place(), made, kernels)
        _put(package, made, kernels)


def _request(package: Path, spec: ModelSpec) -> LibraryRequest:
    """What the package's library was compiled from; the library is not loaded, since its file is about to be replaced."""
    read = packages.read(package)
    processor = open_processor(read, stand_in(read.manifest))  # type: ignore[arg-type]
    return request(read.manifest, processor, spec, "", 0)


def _kernels(package: Path, folder: Path) -> dict[str, Path]:
    """Where kernels of another library are compiled to, by variant: those that the package has."""
    return {name: folder / f"{name}.so" for name in MLC.block(manifest_of(package)).get(HOST_KERNELS, {})}


def _put(package: Path, library: Path, kernels: Mapping[str, Path]) -> None:
    block = MLC.block(manifest_of(package))
    replaced(package, package / block["host_library"], library.read_bytes())
    for variant, file in kernels.items():
        replaced(package, package / block[HOST_KERNELS][variant], file.read_bytes())


def other_rotary_base(spec: ModelSpec) -> ModelSpec:
    """Rotary frequencies are those of a base 1 % larger."""
    rope = spec.decoder.rope
    return replace(spec, decoder=replace(spec.decoder, rope=replace(rope, theta=1.01 * rope.theta)))


def without_residual_scale(spec: ModelSpec) -> ModelSpec:
    """Every decoder layer adds its branches without the scale that the published code multiplies them by."""
    return replace(spec, decoder=replace(spec.decoder, residual_scale=1.0))


def without_embedding_scale(spec: ModelSpec) -> ModelSpec:
    """The token embeddings are not multiplied by the model's embedding scale."""
    return replace(spec, embed=replace(spec.embed, scale=1.0))


def phone_faults(spec: ModelSpec, layer: int) -> tuple[Fault, ...]:
    """Every fault, those of one layer in ``layer``; the library's have no block, since it is opaque.

    Args:
        spec: of the checkpoint that the package was made from.
    """
    residual, embedding, rotary = (
        partial(other_library, spec=spec, change=change)
        for change in (without_residual_scale, without_embedding_scale, other_rotary_base)
    )
    dropped, sign, block = (
        partial(changed_down, layer=place, change=change)
        for place, change in ((0, first_everywhere), (layer, np.negative), (layer, without_one))
    )
    early, chunk = partial(early_library, spec=spec, several=False), partial(early_library, spec=spec, several=True)
    return (
        Fault("swapped norm", "int4", swapped_norms, VISION, "blocks.1"),
        Fault("wrong position table", "int4", shifted_positions, VISION, "blocks.input", also="input_norm"),
        Fault("wrong resize kernel", "int4", bilinear_resize, "preprocess", "resize", "bilinear"),
        *of_pictures("int4"),
        Fault("transposed projection", "int4", transposed_projection, DECODER, "layers.1"),
        Fault("dropped scale (residual)", "int4", residual, DECODER, "", LIBRARY),
        Fault("dropped scale (embedding)", "int4", embedding, EMBED, "", LIBRARY),
        Fault("dropped scale (int4 layer)", "int4", dropped, DECODER, "layers.0"),
        Fault("off-by-one cache", "int4", early, DECODER, "", "positions in the cache", step=1),
        Fault("rotary base 1 % off", "int4", rotary, DECODER, "", LIBRARY, rebuild=True),
        Fault("off-by-one cache behind a chunk", "int4", chunk, DECODER, "", "a call behind the first leaves", step=1),
        Fault("wrong sign of a projection", "int4", sign, DECODER, f"layers.{layer}"),
        Fault("dropped scale (one int4 block)", "int4", block, DECODER, f"layers.{layer}"),
    )
