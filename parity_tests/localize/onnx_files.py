"""An ONNX package's weights, held byte by byte against what an export of the same checkpoint and codes writes.

A wrong row of a matrix, or one code of a million, moves answers by less than their limits: kernels that round hide it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import torch

from export.backends.onnx.cached_attention import cached_head_width
from export.backends.onnx.many_rows import requantised
from export.graphs.layout import Place
from export.graphs.stage_values import OF_CODES, Piece, StageWeights, as_bytes, layer_of, pieces, values
from export.graphs.writer import DTYPES, lying
from export.quantisation.cache_scales import ScaledWeights
from export.source.row_threads import in_order
from parity_tests.check.candidate import Candidate
from parity_tests.reference.checkpoint_side import Checkpoint, cache_scales, codes_of
from runtime_py.backends.records import MANY_ROWS
from runtime_py.contracts import DECODER


def other_parameters(side: Candidate, checkpoint: Checkpoint) -> list[str]:
    """Names of the parameters whose bytes are others than an export's, graph by graph; a second decoder's are the last."""
    return [name for graph, source in _graphs(side, checkpoint) for name in _others(graph, source)]


def _graphs(side: Candidate, checkpoint: Checkpoint) -> Iterator[tuple[Path, StageWeights]]:
    """Every graph that holds parameters, and what fills them."""
    named = side.examiner.record_name
    weights, codes, assignments = codes_of(checkpoint, side.assignments(), named)
    if side.examiner.keeps_bytes(side):
        width = cached_head_width(checkpoint.spec.decoder.head_dim)
        weights = ScaledWeights(weights, cache_scales(checkpoint, named), width)
    for stage, row in side.block["stages"].items():
        yield side.folder / row["file"], StageWeights(stage, weights, codes, assignments)
    if MANY_ROWS in side.block:
        second = requantised(weights, codes, assignments)
        many = StageWeights(DECODER, second.weights, second.codes, second.assignments)
        yield side.folder / side.block[MANY_ROWS]["file"], many


def _others(graph: Path, source: StageWeights) -> list[str]:
    initializers = onnx.load(str(graph), load_external_data=False).graph.initializer
    tensors = [each for each in initializers if each.data_location == onnx.TensorProto.EXTERNAL]
    lie = lying(graph, [each.name for each in tensors])
    stored = [each for each in tensors if each.data_type in DTYPES and _is_known(each.name, source)]
    places = [Place(each.name, DTYPES[each.data_type], tuple(each.dims), lie[each.name].offset) for each in stored]
    right = {place.name for place in places if place.length == lie[place.name].length}
    files = {at.file: np.memmap(graph.parent / at.file, np.uint8, "r") for at in lie.values() if at.length}

    def others(piece: Piece) -> list[str]:
        try:
            made = list(values(piece, source))
        except (KeyError, IndexError):  # the model has no such parameter, or not as many rows
            return [place.name for place in piece.places]
        return [place.name for place, value in made if not _stands(files[lie[place.name].file], place, piece, value)]

    compared = [place for place in places if place.name in right and place.length]
    with closing(in_order(others, pieces(compared, source))) as found:
        right.difference_update(name for names in found for name in names)
    return [f"{source.stage}.{each.name}" for each in tensors if each.name not in right]


def _is_known(name: str, source: StageWeights) -> bool:
    """Whether it is a parameter, or of a layer that the model has."""
    return not name.endswith(OF_CODES) or layer_of(name, source) in source.assignments


def _stands(file: np.ndarray, place: Place, piece: Piece, value: torch.Tensor) -> bool:
    expected = as_bytes(value)
    begin = place.offset + piece.start * place.row_bytes
    return np.array_equal(file[begin : begin + expected.size], expected)
