"""Sizes and peaks of an MLC package from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from export.backends.base import BuildOptions, Prediction
from export.backends.mlc.activations import decoder_activations, image_activations
from export.backends.mlc.parameters import quantised_shapes
from export.backends.mlc.schemes import Scheme, scheme_of
from export.quantisation.spec import Assignment, Storage
from export.specs import ModelSpec
from runtime_py.backends.mlc import PAGE, SPARE_POSITIONS
from runtime_py.contracts import STAGES
from targets.base import Limits

LIBRARY_BYTES = 4 << 20
"""Both model libraries and the JSON files of a full-size package, generously."""

BASE_PROCESS = 245 << 20
"""Resident bytes of the exporter with PyTorch imported, before any weight is read (measured)."""
CHUNK_BYTES = 16 << 20
"""float32 bytes of the pieces under way on up to three threads; a further thread takes 4 MiB more, which is not counted."""

CHUNK_COPIES = 10
"""Chunks of float32 that quantising, packing and writing one chunk take in all (measured)."""
COMPILER = 440 << 20
COMPILER_PER_LAYER = 2 << 20
"""Resident bytes of the compiling process: with TVM imported and a small model built, and per layer (measured)."""


def predict(spec: ModelSpec, options: BuildOptions, assignments: Mapping[str, Assignment]) -> Prediction:
    """Bytes of an MLC package by file, on the device by part, and the exporter's peak; nothing is read or built."""
    from export.modules.build import parameter_shapes

    scheme = scheme_of(options.precision)
    files = dict.fromkeys(STAGES, 0)
    for target, shape in parameter_shapes(spec).items():
        if not (target == "decoder.head.weight" and spec.decoder.tied_head):
            files[target.split(".", 1)[0]] += parameter_bytes(target, shape, assignments, scheme)
    weights = sum(files.values())
    device = {"weights": weights, **working_bytes(spec, options.limits, scheme)}
    streaming = BASE_PROCESS + CHUNK_COPIES * CHUNK_BYTES + largest_computed(spec)
    peak, step = max((streaming, "weights"), (compiling_bytes(spec, 1), "library"))
    return Prediction({**files, "other": LIBRARY_BYTES}, device, peak, step)


def compiling_bytes(spec: ModelSpec, libraries: int) -> int:
    """Resident bytes of the exporter and of so many compilers at once."""
    layers = spec.decoder.layers + spec.vision.layers
    return BASE_PROCESS + libraries * (COMPILER + COMPILER_PER_LAYER * layers)


def compiled_together(spec: ModelSpec, places: Sequence[str], memory: int) -> list[list[str]]:
    """The places in groups that are compiled one after the other: all in one where ``memory`` bytes suffice for as many."""
    if compiling_bytes(spec, len(places)) <= memory:
        return [list(places)]
    return [[place] for place in places]


def parameter_bytes(target: str, shape: tuple[int, ...], assignments: Mapping[str, Assignment], scheme: Scheme) -> int:
    """Bytes of one parameter on the device, which are those in the file but for q4f32_1's halved scales."""
    item = 2 if scheme.model_dtype == "float16" else 4
    assignment = assignments.get(target.removesuffix(".weight"))
    if assignment is None or assignment.storage is not Storage.INT4:
        return math.prod(shape) * item
    words, scales = quantised_shapes(*shape)
    return math.prod(words) * 4 + math.prod(scales) * item


def largest_computed(spec: ModelSpec) -> int:
    """Bytes that the largest parameter computed from whole tensors takes: the embedding-free matrices of a connector."""
    width = spec.connector.width
    return 4 * 3 * width * width * 3 // 2


def working_bytes(spec: ModelSpec, limits: Limits, scheme: Scheme) -> dict[str, int]:
    """Memory beside the weights: cache, the runtime's embedding buffer, and the larger of the two passes' activations."""
    item = 2 if scheme.model_dtype == "float16" else 4
    decoder, tokens = spec.decoder, max(limits.prefill_chunk, limits.batch)
    pages = -(-(limits.context + SPARE_POSITIONS) // PAGE) + 1
    cache = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * pages * PAGE * item * limits.batch
    return {
        "kv_cache": cache,
        "embedding_buffer": limits.prefill_chunk * decoder.hidden * item,
        "activations": max(decoder_activations(decoder, tokens, item), image_activations(spec, item)),
        "logits": 3 * 4 * decoder.vocabulary * limits.batch,
    }
