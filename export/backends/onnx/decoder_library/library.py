"""A written decoder as a shared library, for one kind of processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from export.backends.onnx.decoder_library import operators, request_operators, route_operators  # noqa: F401  (their functions translate)
from export.backends.onnx.decoder_library.kernels import LibraryKernels, Rows
from export.backends.onnx.decoder_library.translation import Entry, Translation
from export.compilation.processor_library import write_processor_library
from export.compilation.size_order import sizes_in_order
from export.graphs.writer import lying
from export.processor.targets import TARGETS
from runtime_py.backends.decoder_library import MOST_GUESSES, MOST_SEQUENCES, MOST_TOKENS, READ, READ_ALL, STEP, VERIFY

SEQUENCES, GUESSES, TOKENS = "sequences_fed", "guesses_fed", "tokens_fed"
ENTRIES = (
    Entry(STEP, SEQUENCES, Rows.STEPS),
    Entry(VERIFY, GUESSES, Rows.GUESSES),
    Entry(READ, TOKENS, Rows.PROMPT, last=True),
    Entry(READ_ALL, TOKENS, Rows.PROMPT),
)
"""A library's functions."""

BOUNDS = {SEQUENCES: MOST_SEQUENCES, GUESSES: MOST_GUESSES, TOKENS: MOST_TOKENS}


@sizes_in_order()
def compile_decoder(graph: Path, place: str, out: Path) -> dict[str, Any]:
    """Write ``out``, the library of a graph.

    Args:
        graph: the decoder's, as it was written, whose data file need not be there.
        place: a key of `export.processor.targets.TARGETS`.

    Returns:
        what the library is called with, in order: of every cache input its name, heads, width and dtype, and of every
        parameter its name, dtype, shape, file beside the graph and offset; where tokens go through weights of their own,
        the indices that functions of prompts take, and those that are empty where all tokens are text; and inputs that all
        tokens of a call share, which every function takes, where there are any.

    Raises:
        UnsupportedModelError: the graph has an operator that is not translated.
        MachineError: there is no linker.
    """
    model = onnx.load(str(graph), load_external_data=False)
    translation = Translation(model.graph, LibraryKernels(place))
    bounds = BOUNDS | translation.routes.bounds(MOST_TOKENS)
    write_processor_library(translation.module(ENTRIES), TARGETS[place], bounds, out)
    places = lying(graph, [parameter.name for parameter in translation.parameters])
    rows = [
        [parameter.name, parameter.dtype, list(parameter.shape), places[parameter.name].file, places[parameter.name].offset]
        for parameter in translation.parameters
    ]
    routes = translation.routes
    further = {"indices": routes.given, "absent": routes.absent} if routes.plain else {}
    further |= {"shared": translation.shared} if translation.shared else {}
    return {"caches": translation.cache_rows(), "parameters": rows} | further
