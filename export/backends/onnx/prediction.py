"""Sizes and peaks of an ONNX package from shapes alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from export.backends.base import BuildOptions, Prediction
from export.backends.onnx.choices import OnnxChoices, rounds_finely
from export.backends.onnx.consumers.held import Tool, obstacles
from export.backends.onnx.finer import chosen_grids
from export.backends.onnx.many_rows import is_integer, second_assignments
from export.graphs.layout import Place, lay_out
from export.quantisation.spec import Assignment, Storage
from export.specs import ModelSpec
from runtime_py.backends.records import DECODER_LIBRARY, INT8_CACHE, MANY_ROWS, VISION_LIBRARY
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, STAGES, VISION

GRAPH_BYTES = {DECODER: 5_000, VISION: 3_400, CONNECTOR: 9_400, EMBED: 1_900}
BLOCK_BYTES = {DECODER: 9_790, VISION: 9_100}
"""Bytes of an ``.onnx`` file without and per block, from the full-size int4 package; other precisions take fewer."""
TURNED_BYTES, TURN_BYTES = 4_800, 16_400
"""What turning and rounding the inputs of a decoder block's four layers adds to its graph, and the matrix that turns all."""
LAYERS = 4
ROUNDING_BYTES, FINE_BYTES = 5_600, 3_300
"""What rounding the inputs of a vision block's `LAYERS` adds to its graph, and what doing so finely in the first adds."""

LIBRARY_BYTES, LIBRARY_LAYER_BYTES = 570_000, 28_500
"""Bytes of both decoder libraries for x86-64 and their index: without and per block, from 2 and 40 blocks."""

ADAPTER_LIBRARY_BYTES = 700_000
"""What kernels of adapters add to them: 0.5 (WeMM) to 0.8 million (Awaker2.5-VL), from three blocks of the demos."""

TOWER_BYTES, TOWER_LAYER_BYTES = 262_000, 7_600
"""The same of a vision library, from 4 and 27 blocks."""

CACHE_ITEM = {"float32": 4, "float16": 2, INT8_CACHE: 1}
"""Bytes of a number in the cache."""

FURTHER = "further_graphs"
JOINT_BYTES, ROWS_BYTES = 1_600, 400
"""What joining two stages' graphs adds to them, and what putting rows into the embeddings does."""


def predict(
    spec: ModelSpec, options: BuildOptions, chosen: OnnxChoices, assignments: Mapping[str, Assignment]
) -> Prediction:
    """Bytes of an ONNX package by file, in a running process by part, and the exporter's peak; nothing is built."""
    laid = {stage: stage_places(spec, stage, chosen, assignments) for stage in STAGES}
    blocks = {DECODER: spec.decoder.layers, VISION: spec.vision.layers}
    graphs = {stage: GRAPH_BYTES[stage] + BLOCK_BYTES.get(stage, 0) * blocks.get(stage, 0) for stage in laid}
    if chosen.vision_precision == "int8":
        graphs[VISION] += ROUNDING_BYTES * spec.vision.layers + FINE_BYTES + _finer_bytes(chosen_grids(assignments))
    files = {stage: graphs[stage] + _file_bytes(stage, places, assignments) for stage, (places, _) in laid.items()}
    second = second_bytes(spec, chosen, assignments)
    if second:
        files[MANY_ROWS] = graphs[DECODER] + TURN_BYTES + TURNED_BYTES * spec.decoder.layers + second
    if chosen.decoder_library:
        adapters = any(assignment.layer.role == "adapter" for assignment in assignments.values())
        files[DECODER_LIBRARY] = LIBRARY_BYTES + LIBRARY_LAYER_BYTES * spec.decoder.layers + ADAPTER_LIBRARY_BYTES * adapters
    if chosen.vision_library:
        files[VISION_LIBRARY] = TOWER_BYTES + TOWER_LAYER_BYTES * spec.vision.layers
    files[FURTHER] = graphs[VISION] + graphs[CONNECTOR] + JOINT_BYTES
    files[DECODER] += _scale_bytes(spec, chosen)
    if not obstacles(spec, Tool.GENAI, chosen.cache):
        files[FURTHER] += graphs[EMBED] + ROWS_BYTES + graphs[DECODER]
    held = sum(_resident(stage, places, chosen, assignments) for stage, (places, _) in laid.items() if stage != DECODER)
    held += _first_bytes(laid[DECODER][0], chosen, assignments) + second
    device = {
        "weights": held,
        "kv_cache": _cache_bytes(spec, options, chosen),
        "activations": _activation_bytes(spec, options),
        "runtime": RUNTIME,
    }
    largest = max(laid, key=lambda stage: files[stage])
    compiled = ["decoder"] * chosen.decoder_library + ["vision"] * chosen.vision_library
    peak = EXPORT_BASE + EXPORT_BLOCK * sum(blocks.values()) + (COMPILER if compiled else 0)
    return Prediction(files, device, peak, f"onnx {compiled[0]} libraries" if compiled else f"onnx {largest}")


def _finer_bytes(chosen: Mapping[str, str]) -> int:
    """What a choice adds to the graph of an ``int8`` tower, or takes from it where layers do not round their inputs."""
    already = {name for name in chosen if rounds_finely(name)}
    finer = [name for name, grid in chosen.items() if grid and name not in already]
    floats = [name for name, grid in chosen.items() if not grid]
    less = ROUNDING_BYTES * len(floats) + FINE_BYTES * len(already.intersection(floats))
    return (FINE_BYTES * len(finer) - less) // LAYERS


def _first_bytes(places: list[Place], chosen: OnnxChoices, assignments: Mapping[str, Assignment]) -> int:
    """What the first decoder holds: its file as a library maps it, or ONNX Runtime's packed form."""
    if chosen.decoder_library:
        return sum(place.length for place in places)
    return _resident(DECODER, places, chosen, assignments)


def stage_places(
    spec: ModelSpec, stage: str, chosen: OnnxChoices, assignments: Mapping[str, Assignment]
) -> tuple[list[Place], int]:
    """The parameters of a stage as they will lie in its data file, in the modules' order."""
    from export.backends.onnx.stage_graphs import kernels
    from export.modules.build import stored_modules

    stored = stored_modules(spec, stage, kernels(chosen, assignments))
    parameters = (
        (f"{path}.{name}".removeprefix("."), p) for path, module in stored for name, p in module.named_parameters()
    )
    return lay_out((name, str(p.dtype).removeprefix("torch."), tuple(p.shape)) for name, p in parameters)


def _file_bytes(stage: str, places: list[Place], assignments: Mapping[str, Assignment]) -> int:
    """Bytes of a stage's data file, without what lies in another stage's (`Assignment.shares`)."""
    return lay_out(_columns([place for place in places if not _shared(stage, place, assignments)]))[1]


def _columns(places: list[Place]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    return ((place.name, place.dtype, place.shape) for place in places)


def second_bytes(spec: ModelSpec, chosen: OnnxChoices, assignments: Mapping[str, Assignment]) -> int:
    """Bytes of the data file of a second decoder, and of its matrices in memory; 0 without one."""
    if not chosen.prefill_precision:
        return 0
    second = second_assignments(assignments)
    places, _ = stage_places(spec, DECODER, chosen, {**assignments, **second})
    own = [p for p in places if f"{DECODER}.{p.name.rpartition('.')[0]}" in second and is_integer(p.name)]
    return lay_out(_columns(own))[1]


def _shared(stage: str, place: Place, assignments: Mapping[str, Assignment]) -> bool:
    layer = assignments.get(f"{stage}.{place.name.rpartition('.')[0]}")
    return layer is not None and bool(layer.shares) and place.name.endswith(("_codes", "_scales"))


RUNTIME = 60_000_000
"""The libraries themselves: Python, NumPy, Pillow, ONNX Runtime."""

COMPILER = 520_000_000
"""Resident bytes of the process that compiles a decoder library, from 40 blocks; it is one at a time."""

EXPORT_BASE, EXPORT_BLOCK = 420_000_000, 3_000_000
"""Resident bytes of an export: torch, onnx, onnxscript and the writer's pieces; what a traced block leaves behind.

Measured as ru_maxrss: 0.41 GB with 2 + 2 blocks, 0.61 GB with 26 + 40.
"""


def _resident(stage: str, places: list[Place], chosen: OnnxChoices, assignments: Mapping[str, Assignment]) -> int:
    """Bytes that ONNX Runtime 1.31 holds of a stage's parameters on an x86-64 processor.

    Codes and looked-up tables stay as they are; float16 matrices and scales become float32 at load. At accuracy level 4
    the packed form of a layer keeps beside them a second copy of its scales and a sum per block.
    """
    total = 0
    for place in places:
        layer = assignments.get(f"{stage}.{place.name.rpartition('.')[0]}")
        if place.dtype != "float16" or stage == EMBED:
            copies = 1
        elif layer is not None and _rounds_its_input(layer) and chosen.accuracy_level == 4:
            copies = 6
        else:
            copies = 2
        total += copies * place.length
    return total


def _rounds_its_input(assignment: Assignment) -> bool:
    from export.backends.onnx.kernels import EIGHT_BITS_ROUNDED

    eight = assignment.storage is Storage.INT8 and assignment.layer.role in EIGHT_BITS_ROUNDED
    return eight or assignment.storage is Storage.INT4


def _cache_bytes(spec: ModelSpec, options: BuildOptions, chosen: OnnxChoices) -> int:
    from export.backends.onnx.cached_attention import cached_head_width

    decoder, limits = spec.decoder, options.limits
    width = cached_head_width(decoder.head_dim)
    return 2 * decoder.layers * decoder.kv_heads * width * limits.context * limits.batch * CACHE_ITEM[chosen.cache]


def _scale_bytes(spec: ModelSpec, chosen: OnnxChoices) -> int:
    """Of the scales of a cache in bytes."""
    from export.backends.onnx.cached_attention import cached_head_width

    decoder = spec.decoder
    width = cached_head_width(decoder.head_dim)
    return 4 * 2 * decoder.layers * decoder.kv_heads * width if chosen.cache == INT8_CACHE else 0


def _activation_bytes(spec: ModelSpec, options: BuildOptions) -> int:
    """The larger of one prefill chunk and one picture in the vision encoder, float32."""
    decoder, vision = spec.decoder, spec.vision
    tokens = max(options.limits.prefill_chunk, options.limits.batch)
    qkv = (decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim
    per_token = 3 * decoder.hidden + max(2 * qkv, 4 * decoder.mlp_width)
    patches = vision.structure.patches or 1024
    per_patch = 3 * vision.width + max(6 * vision.width, 2 * vision.mlp_width)
    return 4 * max(tokens * per_token + decoder.vocabulary, patches * per_patch)
