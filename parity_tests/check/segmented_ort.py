"""A package's ONNX graphs run piece by piece, so that a check needs the memory of one piece and not of the model.

A graph is cut, in its own order of nodes, where the weights read so far fill a piece. Values that cross a cut are kept
between the runs. Nodes, weights and kernels are those of the package; what ONNX Runtime would fuse across a cut stays apart,
and every call opens every piece again, so this is for checks of large packages, not for use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.modules.build import layer_shapes
from export.specs import ModelSpec
from parity_tests.check.onnx_values import axes_of, dtype_of, element_type, stored_bytes
from parity_tests.localize.onnx_blocks import open_graph
from runtime_py.backends.base import Arrays
from runtime_py.backends.logit_rows import logit_rows
from runtime_py.backends.ort import OrtBackend, OrtState
from runtime_py.backends.ort_decoder import CacheBuffers
from runtime_py.backends.ort_inputs import PAST, PRESENT
from runtime_py.backends.ort_stages import widened
from runtime_py.backends.small_pages import zeros
from runtime_py.backends.stage_sessions import give_back_freed
from runtime_py.contracts import DECODER, VISION
from runtime_py.errors import UsageError

PIECE_BYTES = 192 << 20
"""Stored weights of a piece; ONNX Runtime holds them mapped and, once more, in its kernels' packed form."""

SPARE_POSITIONS = 32
"""Positions a cache grows by beyond what it needs."""

RUNTIME_BYTES = 100 << 20
"""What ONNX Runtime and the onnx library add to a Python process."""

Transform = Callable[[Any], None]
"""Changes a graph in memory before it is cut (`parity_tests.localize.onnx_blocks.set_exact`)."""


@dataclass(frozen=True)
class Piece:
    """A run of consecutive nodes as a graph of its own.

    Attributes:
        takes: values it needs that are no weights, the graph's own inputs among them.
        gives: values that later pieces or the caller need; caches come last.
    """

    nodes: tuple[int, ...]
    weights: tuple[str, ...]
    takes: tuple[str, ...]
    gives: tuple[str, ...]


def cut(graph: Any, sizes: Mapping[str, int], piece_bytes: int) -> list[Piece]:
    """Cut an onnx.GraphProto into pieces of at most ``piece_bytes`` weights, where single nodes allow it.

    What is computed from weights alone (float16 scales cast to float32) goes into every piece that reads it: kernels that
    pack their weights ahead need constants.

    Args:
        sizes: bytes of every initializer by name.
    """
    constants = _constant_nodes(graph, sizes)
    groups: list[list[int]] = [[]]
    filled: set[str] = set()
    for index in sorted(set(range(len(graph.node))) - set(constants.values())):
        needs = {name for name in _closure(graph, [index], constants)[1] if name in sizes}
        if groups[-1] and sum(sizes[name] for name in filled | needs) > piece_bytes:
            groups.append([])
            filled = set()
        groups[-1].append(index)
        filled |= needs
    results = {value.name for value in graph.output}
    last_use = {name: index for index, node in enumerate(graph.node) for name in _inputs(node)}
    return [_piece(graph, group, constants, sizes, results, last_use) for group in groups]


def _piece(
    graph: Any,
    group: list[int],
    constants: Mapping[str, int],
    sizes: Mapping[str, int],
    results: set[str],
    last_use: Mapping[str, int],
) -> Piece:
    nodes, read = _closure(graph, group, constants)
    made = {name for index in nodes for name in graph.node[index].output if name}
    wanted = {
        name for index in group for name in graph.node[index].output if name in results or last_use.get(name, -1) > group[-1]
    }
    return Piece(
        nodes=tuple(nodes),
        weights=tuple(name for name in read if name in sizes),
        takes=tuple(name for name in read if name not in sizes and name not in made),
        gives=tuple(sorted(wanted, key=lambda name: (name.startswith(PRESENT), name))),
    )


def _constant_nodes(graph: Any, sizes: Mapping[str, int]) -> dict[str, int]:
    """Values computed from weights alone, to the index of their node."""
    counts: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        reads = _inputs(node)
        if all(name in sizes or name in counts for name in reads) and (reads or node.op_type == "Constant"):
            counts |= {name: index for name in node.output if name}
    return counts


def _closure(graph: Any, group: list[int], constants: Mapping[str, int]) -> tuple[list[int], list[str]]:
    """The nodes of a group with the constant nodes it needs, in order, and everything they read."""
    nodes, waiting = set(group), list(group)
    while waiting:
        for name in _inputs(graph.node[waiting.pop()]):
            if name in constants and constants[name] not in nodes:
                nodes.add(constants[name])
                waiting.append(constants[name])
    ordered = sorted(nodes)
    return ordered, list(dict.fromkeys(name for index in ordered for name in _inputs(graph.node[index])))


def _inputs(node: Any) -> list[str]:
    """Everything a node reads, subgraphs included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            made = {name for inner in graph.node for name in inner.output} | {value.name for value in graph.initializer}
            names += [name for inner in graph.node for name in _inputs(inner) if name not in made]
    return names


class SegmentedOrtBackend(OrtBackend):
    """An `OrtBackend` that holds one piece of one graph at a time.

    Args:
        transform: applied to every graph before it is cut.
        piece_bytes: see `PIECE_BYTES`.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        transform: Transform | None = None,
        piece_bytes: int = PIECE_BYTES,
        own_code: bool = False,
    ) -> None:
        super().__init__(folder, manifest, own_code=own_code)
        self.transform, self.piece_bytes = transform, piece_bytes
        self._graphs: dict[str, tuple[Any, list[Piece]]] = {}

    def run(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run a cache-less stage, one piece of its graph in memory at a time."""
        if stage == VISION and self.vision is not None:
            return self.vision.run(inputs)
        return self._through(stage, self._checked(stage, inputs), {})

    def start(self, capacity: int) -> OrtState:
        """An empty cache; it grows with what is in it, since a check fills little of a long context."""
        return OrtState(0, capacity, CacheBuffers())

    def _feed(self, state: OrtState, inputs: Arrays, logit_positions: np.ndarray, decoder: str) -> np.ndarray:
        """Feed tokens to a decoder, one piece of its graph in memory at a time; the cache is written in place."""
        tokens = inputs["inputs_embeds"].shape[1]
        total = state.length + tokens
        if total > state.capacity:
            raise UsageError(f"{total} tokens", f"at most {state.capacity} positions", "ask a shorter question")
        state.buffers = self._room(state.buffers, total)
        library = self.library_for(1, state.buffers) if decoder == DECODER else None
        if library is not None:
            logits = library.run(inputs, np.array([state.length]), state.buffers, np.asarray(logit_positions))
            state.length = total
            return logits
        names = {value.name for value in self._graph(decoder)[0].graph.input}
        asked = logit_rows(names, logit_positions, tokens)
        own = {"attention_mask": np.ones((1, total), np.int64), **asked.feeds}
        outputs = self._through(decoder, self._checked(decoder, {**inputs, **own}), state.buffers)
        state.length = total
        return asked.chosen(outputs["logits"])

    def _room(self, buffers: CacheBuffers, total: int) -> CacheBuffers:
        """Cache buffers (1, kv_heads, positions, head_dim) with room for ``total`` positions, holding what they held."""
        arrays: dict[str, np.ndarray] = {}
        for value in self._graph(DECODER)[0].graph.input:
            if not value.name.startswith(PAST):
                continue
            old = buffers.get(value.name)
            if old is not None and old.shape()[2] >= total:
                return buffers
            heads, width = (value.type.tensor_type.shape.dim[axis].dim_value for axis in (1, 3))
            array = zeros((1, heads, total + SPARE_POSITIONS, width), np.dtype(dtype_of(value)))
            if old is not None:
                array[:, :, : old.shape()[2]] = old.numpy()
            arrays[value.name] = array
        made = {name: self._ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        return CacheBuffers(made, arrays)

    def release(self) -> None:
        super().release()
        self._graphs.clear()

    def _graph(self, stage: str) -> tuple[Any, list[Piece]]:
        if stage not in self._graphs:
            import onnx

            model = onnx.load(str(self.folder / self.files[stage]), load_external_data=False)
            if self.transform is not None:
                self.transform(model)
            sizes = {value.name: stored_bytes(value) for value in model.graph.initializer}
            for value in model.graph.input:
                sizes.pop(value.name, None)
            self._graphs[stage] = model, cut(model.graph, sizes, self.piece_bytes)
        return self._graphs[stage]

    def _checked(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """Inputs in the dtypes the graph takes, and the values of inputs that were left to their defaults."""
        from onnx import numpy_helper

        model, _ = self._graph(stage)
        wanted = {value.name: dtype_of(value) for value in model.graph.input}
        feeds = {name: np.ascontiguousarray(array, dtype=wanted[name]) for name, array in inputs.items() if name in wanted}
        for value in model.graph.initializer:
            if value.name in wanted and value.name not in feeds:
                feeds[value.name] = numpy_helper.to_array(value)
        return feeds

    def _through(self, stage: str, feeds: dict[str, np.ndarray], buffers: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Run all pieces in turn; ``buffers`` are caches, updated in place."""
        model, pieces = self._graph(stage)
        values: dict[str, Any] = {name: self._ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
        outputs = [value.name for value in model.graph.output if not value.name.startswith(PRESENT)]
        last_use = {name: number for number, piece in enumerate(pieces) for name in piece.takes}
        for number, piece in enumerate(pieces):
            results = self._run_piece(self._model_of(model, piece, {**values, **buffers}), stage, piece, values, buffers)
            values |= {name: self._ort.OrtValue.ortvalue_from_numpy(array) for name, array in results.items()}
            for name in [name for name in values if last_use.get(name, -1) <= number and name not in outputs]:
                del values[name]
            give_back_freed()
        return {name: widened(np.array(values[name].numpy())) for name in outputs}

    def _run_piece(
        self, model: Any, stage: str, piece: Piece, values: Mapping[str, Any], buffers: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        """Open a piece, run it and close it; what it gives is copied out of the session's memory."""
        session = open_graph(model, (self.folder / self.files[stage]).parent, arena=False)
        binding = session.io_binding()
        for name in piece.takes:
            binding.bind_ortvalue_input(name, buffers.get(name) or values[name])
        computed = [name for name in piece.gives if not name.startswith(PRESENT)]
        for name in computed:
            binding.bind_output(name)
        for name in piece.gives[len(computed) :]:
            binding.bind_ortvalue_output(name, buffers[PAST + name.removeprefix(PRESENT)])
        session.run_with_iobinding(binding)
        return {
            name: np.array(value.numpy())
            for name, value in zip(computed, binding.get_outputs()[: len(computed)], strict=True)
        }

    def _model_of(self, model: Any, piece: Piece, values: Mapping[str, Any]) -> Any:
        """A piece as a model; its inputs have the dtypes of the values at hand.

        Shapes go along where the graph says them: ONNX Runtime fuses more where it knows them.
        """
        import onnx

        graph = model.graph
        weights = set(piece.weights)
        shapes = {value.name: value for value in (*graph.input, *graph.value_info)}
        made = {name for index in piece.nodes for name in graph.node[index].output}
        return onnx.helper.make_model(
            onnx.helper.make_graph(
                [graph.node[index] for index in piece.nodes],
                "piece",
                [
                    onnx.helper.make_tensor_value_info(n, element_type(values[n]), axes_of(shapes.get(n)))
                    for n in piece.takes
                ],
                [onnx.ValueInfoProto(name=name) for name in piece.gives],
                [value for value in graph.initializer if value.name in weights],
                value_info=[shapes[name] for name in sorted(made - set(piece.gives)) if name in shapes],
            ),
            opset_imports=model.opset_import,
            ir_version=model.ir_version,
        )


def predicted_peak(spec: ModelSpec) -> int:
    """Resident bytes that running a large package in pieces adds to a process, roughly, whatever its precision.

    A piece is held mapped and packed; no piece is smaller than the widest matrix, here taken at one byte a weight.
    """
    widest = max(layer.rows * layer.columns for layer in layer_shapes(spec))
    return 2 * max(PIECE_BYTES, widest) + RUNTIME_BYTES
