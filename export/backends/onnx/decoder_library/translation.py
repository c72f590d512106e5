"""From the nodes of the decoder's graph to Relax functions that feed a token of each of several sequences, or a prompt.

The graph is the only description of the model: its operators, constants and parameters are taken as they are written. What
remains of its inputs is ``inputs_embeds`` (sequences, tokens, hidden), one of the two 1, ``position_ids``, and int32
``lengths`` (sequences,) in place of the attention mask; caches and parameters are two tuples. Meaning of the operators:
onnx/onnx, docs/Operators.md, and microsoft/onnxruntime, docs/ContribOperators.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from tvm import relax, tirx

from export.backends.onnx.decoder_library.kernels import LibraryKernels, Rows
from export.backends.onnx.decoder_library.nodes import (
    ATTENTION,
    ELEMENTS,
    HANDED_ON,
    OPERATORS,
    REQUEST_OPERATORS,
    folded,
    known_from_request,
    read_of_all_tokens,
    refused,
)
from export.backends.onnx.decoder_library.token_routes import routes_of
from export.backends.onnx.decoder_library.values import (
    Mask,
    Parameter,
    Part,
    RequestValue,
    Rotated,
    Scaled,
    Sigmoid,
    Silu,
    Tokens,
    Unmade,
    Value,
    variables,
)
from export.graphs.writer import DTYPES
from export.processor.block_product import BlockMatrix
from runtime_py.backends.ort_inputs import PAST

EMBEDS, POSITIONS, MASK = "inputs_embeds", "position_ids", "attention_mask"
KEPT, LENGTHS = "num_logits_to_keep", "lengths"
REQUEST = "gate_input"
"""An input that all tokens of a call share, of decoders whose adapters are chosen by the request."""

ROWS = 2
"""Axes of what passes between kernels: sequences and channels."""


@dataclass(frozen=True)
class Entry:
    """A function of a library.

    Attributes:
        name: of the function.
        rows: what its rows are called, whose most are known when memory is planned.
        kind: what its rows are.
        last: of one sequence, the last token alone gets logits.
    """

    name: str
    rows: str
    kind: Rows
    last: bool = False


class Translation:
    """One graph, as far as it is translated.

    Args:
        graph: of the decoder, without its weights.
        kernels: makes the kernels, for one kind of processor.

    Attributes:
        parameters: those that a function takes, in the order of its tuple.
        caches: cache inputs, in the order of its tuple.
        entry: which function is being written.
        routes: indices of tokens that go through weights of their own.
        shared: inputs that all tokens of a call share, which every function takes.
        unread: how often each tensor is still to be read, by whatever names and parts of them.
        products: matrix and operands of each product of rounded inputs.
        adapters: what products of adapters were made of, which of the function being written.
        weighted: of such a product and weights, the one times the other.
    """

    def __init__(self, graph: onnx.GraphProto, kernels: LibraryKernels) -> None:
        self.graph, self.kernels = graph, kernels
        used = {name for node in graph.node for name in node.input}
        external = [tensor for tensor in graph.initializer if tensor.external_data and tensor.name in used]
        self.parameters = [self._parameter(tensor) for tensor in external]
        self.caches = [value.name for value in graph.input if value.name.startswith(PAST)]
        self.routes = routes_of(graph)
        self.shared = [value.name for value in graph.input if value.name == REQUEST]
        self._uses = Counter([name for node in graph.node for name in node.input] + [value.name for value in graph.output])
        self._whole = read_of_all_tokens(graph)
        self._builder = relax.BlockBuilder()

    def module(self, entries: Sequence[Entry]) -> Any:
        """The Relax module of functions to logits.

        They take embeds, positions, lengths, inputs that all tokens share, a prompt's indices, caches and parameters.
        """
        for entry in entries:
            self._write(entry)
        return self._builder.finalize()

    def _write(self, entry: Entry) -> None:
        self.entry, self.rows = entry, tirx.Var(entry.rows, "int64")
        self._sizes = tirx.Var("sequences", "int64"), tirx.Var("capacity", "int64")
        self._placed: dict[str, relax.Var] = {}
        self._flat: dict[relax.Var, relax.Var] = {}
        self._last: dict[relax.Var, relax.Var] = {}
        self.products: dict[relax.Var, tuple[BlockMatrix, list[relax.Expr]]] = {}
        self.unread: Counter[relax.Var] = Counter()
        self._made: dict[Unmade, relax.Var] = {}
        self.adapters: dict[relax.Var, Any] = {}
        self.weighted: dict[tuple[relax.Var, relax.Expr], relax.Var] = {}
        inputs = {value.name: value for value in self.graph.input}
        hidden = inputs[EMBEDS].type.tensor_type.shape.dim[2].dim_value
        axes = [dim.dim_value for dim in inputs[POSITIONS].type.tensor_type.shape.dim][:-2]
        sizes = (self.rows, 1) if entry.kind is Rows.STEPS else (1, self.rows)
        given = [
            relax.Var(EMBEDS, relax.TensorType((*sizes, hidden), "float32")),
            relax.Var(POSITIONS, relax.TensorType((*axes, *sizes), "int32")),
            relax.Var(LENGTHS, relax.TensorType((sizes[0],), "int32")),
        ]
        shared = {name: relax.Var(name, self._whole_type(inputs[name])) for name in self.shared}
        indices = self.routes.arguments(self.rows) if entry.kind is Rows.PROMPT else {}
        caches = relax.Var("caches", relax.TupleType([self._cache_type(inputs[name]) for name in self.caches]))
        held = relax.Var("parameters", relax.ObjectType())
        with self._builder.function(entry.name, [*given, *shared.values(), *indices.values(), caches, held]):
            with self._builder.dataflow():
                self._begin(given)
                self.values |= {name: RequestValue(value) for name, value in shared.items()}
                self.values |= {**self.routes.plain, **{name: Tokens(index) for name, index in indices.items()}}
                self.values |= {name: self.emit(relax.TupleGetItem(caches, at)) for at, name in enumerate(self.caches)}
                self._placed |= {each.name: self._entry(held, at, each) for at, each in enumerate(self.parameters)}
                for node in self.graph.node:
                    self._translate(node)
                result = self._builder.emit_output(self.rows_of(self.values[self.graph.output[0].name]))
            self._builder.emit_func_output(result)

    # values

    def _begin(self, given: list[relax.Var]) -> None:
        self.values: dict[str, Value] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in self.graph.initializer if not tensor.external_data
        }
        self.values |= {parameter.name: parameter for parameter in self.parameters}
        self.values |= {EMBEDS: given[0], POSITIONS: given[1], MASK: Mask(), KEPT: np.array(1, np.int64), "": None}
        self.lengths = given[2]

    def _entry(self, held: relax.Var, number: int, parameter: Parameter) -> relax.Var:
        """A parameter of the array of them. What it is the runtime has checked; the machine would in every call."""
        kind = relax.TensorType(parameter.shape, parameter.dtype)
        return self.emit(relax.call_pure_packed("vm.builtin.tuple_getitem", held, relax.prim_value(number), ty_args=kind))

    def _cache_type(self, value: onnx.ValueInfoProto) -> relax.TensorType:
        tensor = value.type.tensor_type
        heads, width = tensor.shape.dim[1].dim_value, tensor.shape.dim[3].dim_value
        sequences, capacity = self._sizes
        return relax.TensorType((sequences, heads, capacity, width), ELEMENTS[tensor.elem_type])

    @staticmethod
    def _whole_type(value: onnx.ValueInfoProto) -> relax.TensorType:
        tensor = value.type.tensor_type
        return relax.TensorType([dim.dim_value for dim in tensor.shape.dim], ELEMENTS[tensor.elem_type])

    def cache_rows(self) -> list[list[Any]]:
        """Of every cache input its name, heads, width and dtype."""
        inputs = {value.name: value.type.tensor_type for value in self.graph.input}
        sizes = {name: [inputs[name].shape.dim[axis].dim_value for axis in (1, 3)] for name in self.caches}
        return [[name, *sizes[name], ELEMENTS[inputs[name].elem_type]] for name in self.caches]

    @staticmethod
    def _parameter(tensor: onnx.TensorProto) -> Parameter:
        return Parameter(tensor.name, DTYPES[tensor.data_type], tuple(tensor.dims))

    def placed(self, parameter: Parameter) -> relax.Var:
        return self._placed[parameter.name]

    def emit(self, expression: relax.Expr) -> relax.Var:
        return self._builder.emit(expression)

    def call(self, name: str, kernel: tirx.PrimFunc, arguments: list[relax.Expr], out: relax.Type) -> relax.Var:
        """Run a kernel that writes its last arguments, one for each type of ``out``."""
        return self.emit(relax.call_tir(self._builder.add_func(kernel, name), arguments, out))

    def call_in_place(
        self, name: str, kernel: tirx.PrimFunc, arguments: list[relax.Expr], changed: list[int], out: relax.Type
    ) -> relax.Var:
        """The same where some arguments are changed; the result is the last, new one."""
        types = [arguments[place].ty for place in changed]
        made = relax.call_tir_inplace(self._builder.add_func(kernel, name), arguments, [*changed, -1], [*types, out])
        return self.emit(relax.TupleGetItem(self.emit(made), len(changed)))

    def change(self, name: str, kernel: tirx.PrimFunc, arguments: list[relax.Expr]) -> relax.Var:
        """Run a kernel that writes over its last argument, which is read by this name no more; what it then is."""
        places, types = [len(arguments) - 1], [arguments[-1].ty]
        return self.emit(relax.call_tir_inplace(self._builder.add_func(kernel, name), arguments, places, types))

    @staticmethod
    def like(rows: relax.Var, width: int) -> relax.TensorType:
        """float32 (as many rows, width)."""
        return relax.TensorType((rows.ty.shape[0], width), "float32")

    def rows_of(self, value: Value) -> relax.Var:
        """A value as a tensor (rows, width): what kernels make, or a graph's of three axes, one of them 1."""
        tensor = self.tensor(value)
        if len(tensor.ty.shape) == ROWS:
            return tensor
        if tensor not in self._flat:
            self._flat[tensor] = self.emit(relax.op.reshape(tensor, (self.rows, int(tensor.ty.shape[2]))))
        return self._flat[tensor]

    def of_last(self, node: onnx.NodeProto) -> bool:
        """Whether nothing reads more of what a node makes than the last token's; not where indices name tokens."""
        return self.entry.last and not self.routes.plain and not self._whole.intersection(node.output)

    def last(self, value: Value) -> Value:
        """The same of the last token alone; what has no tokens, or one, stays what it is."""
        if isinstance(value, Part | Scaled | Rotated | Sigmoid | Silu):
            return replace(value, **{field.name: self.last(getattr(value, field.name)) for field in fields(value)})
        if not isinstance(value, relax.Var) or not self._has_rows(value):
            return value
        if value not in self._last:
            rows = self.rows_of(value)
            taken = relax.op.strided_slice(rows, axes=[0], begin=[self.rows - 1], end=[self.rows])
            self._last[value] = self.emit(relax.op.reshape(self.emit(taken), (1, int(rows.ty.shape[1]))))
        return self._last[value]

    def _has_rows(self, value: relax.Var) -> bool:
        """Whether it has a row for each token of the call."""
        shape = getattr(value.ty, "shape", None)
        return shape is not None and len(shape) in (ROWS, ROWS + 1) and self.rows.same_as(shape[len(shape) - 2])

    def tensor(self, value: Value) -> relax.Expr:
        """A value as a tensor that exists."""
        match value:
            case relax.Expr():
                return value
            case RequestValue(tensor):
                return tensor
            case Parameter():
                return self.placed(value)
            case np.ndarray():
                return relax.const(value)
            case Unmade():
                if value not in self._made:
                    self._made[value] = value.made(self)
                return self._made[value]
        return self.emit(self._expression(value))

    def _expression(self, value: Value) -> relax.Expr:
        """What makes a value of those that kernels take unmade."""
        match value:
            case Part(source, start, width):
                axis = len(source.ty.shape) - 1
                return relax.op.strided_slice(source, axes=[axis], begin=[start], end=[start + width])
            case Scaled(inner, factor):
                return relax.op.multiply(self.tensor(inner), relax.const(factor, "float32"))
            case Sigmoid(inner):
                return relax.op.sigmoid(self.tensor(inner))
            case Silu(inner):
                return relax.op.nn.silu(self.tensor(inner))
        raise TypeError(f"{type(value).__name__} is no tensor")

    def _translate(self, node: onnx.NodeProto) -> None:
        for name in node.input:
            self.unread.subtract(variables(self.values[name]))
        made = dict(zip(node.output, self._results(node), strict=False))
        self.values |= made
        for name, value in made.items():
            self.unread.update(dict.fromkeys(variables(value), self._uses[name]))

    def _results(self, node: onnx.NodeProto) -> list[Value]:
        given = [self.values[name] for name in node.input]
        if self.of_last(node) and node.op_type != ATTENTION:
            given = [self.last(value) for value in given]
        for kind, readers in HANDED_ON.items():
            if any(isinstance(value, kind) for value in given) and node.op_type not in readers:
                return [kind()] * len(node.output)
        if all(isinstance(value, np.ndarray) or value is None for value in given):
            return folded(node, given)
        table = REQUEST_OPERATORS if known_from_request(given) else OPERATORS
        if node.op_type not in table:
            raise refused(node, "is not translated")
        made = table[node.op_type](self, node, given)
        return made if isinstance(made, list) else [made]
