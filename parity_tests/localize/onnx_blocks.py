"""Values inside an ONNX graph of a package: the graph is copied in memory with more outputs, weights stay on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.backends.examiner import NotShown
from parity_tests.check.candidate import Candidate
from parity_tests.localize.exact_products import set_float_products
from runtime_py.backends.base import Arrays
from runtime_py.backends.logit_rows import POSITIONS, logit_rows
from runtime_py.backends.ort import OrtBackend
from runtime_py.backends.ort_inputs import DTYPES, PAST, PRESENT
from runtime_py.backends.ort_session import cannot_load
from runtime_py.backends.records import ONNX
from runtime_py.contracts import DECODER
from runtime_py.errors import PackageError

LEAVING = ".output"
"""What follows a module's path in the name of the value that leaves it."""


def open_graph(model: Any, folder: Path, providers: Sequence[str] = ("CPUExecutionProvider",), arena: bool = True) -> Any:
    """An ONNX Runtime session of a graph in memory whose weights lie in ``folder``.

    Args:
        arena: False frees every buffer as soon as it is not used, at the price of time.

    Raises:
        PackageError: ONNX Runtime does not take it with these weights.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = arena
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=list(providers))
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        raise cannot_load(onnxruntime, folder, error) from error


class ExactOrtBackend(OrtBackend):
    """The package's graphs computed in float32 throughout (`set_exact`)."""

    def _open(self, stage: str) -> Any:
        import onnx

        path = self.folder / self.files[stage]
        model = onnx.load(str(path), load_external_data=False)
        set_exact(model)
        return open_graph(model, path.parent)


def set_exact(model: Any) -> None:
    """Switch off every rounding that is a choice of arithmetic: int8 inputs of layers, and the float16 cache.

    Casts to float16 in front of the cached attention become casts to float32, and so do the cache's inputs and outputs.
    Stored numbers stay what they are, and so do roundings that belong to the model (Awaker's gates round to float16).
    """
    from onnx import TensorProto

    attended = {name for node in model.graph.node if node.op_type == "GroupQueryAttention" for name in node.input}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = 0
            cast = node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16
            if cast and node.output[0] in attended:
                attribute.i = TensorProto.FLOAT
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    set_float_products(model)


class OnnxStage:
    """One stage's graph, opened for looking inside.

    Raises:
        PackageError: the package has no graph of this stage.
    """

    def __init__(self, candidate: Candidate, stage: str) -> None:
        import onnx

        block = ONNX.block(candidate.manifest)
        try:
            file = candidate.folder / block["stages"][stage]["file"]
        except KeyError as error:
            raise PackageError(f"no ONNX graph of {stage}", "backends.onnx.stages", "choose another backend") from error
        self.stage = stage
        self.exact = (
            isinstance(candidate.backend, ExactOrtBackend) or getattr(candidate.backend, "transform", None) is set_exact
        )
        self.folder = file.parent
        self.model = onnx.load(str(file), load_external_data=False)
        self.block_values: Mapping[str, str] = block.get("block_outputs", {}).get(stage, {})
        self._producers = {name: i for i, node in enumerate(self.model.graph.node) for name in node.output if name}

    def blocks(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Outputs of the blocks that the manifest names, by block."""
        wanted = {block: value for block, value in self.block_values.items() if value in self._producers}
        values = self.run(inputs, list(wanted.values()))
        return {block: values[value] for block, value in wanted.items()}

    def between(self, inputs: Arrays, good: str, bad: str) -> list[np.ndarray]:
        """All float values made from block ``good`` to block ``bad``; "" stands for the stage's inputs and for its end.

        The node that ends block ``good`` counts: it may be fused with the norm that begins the next one.
        """
        first = self._producers.get(self.block_values.get(good, ""), 0)
        last = self._producers.get(self.block_values.get(bad, ""), len(self.model.graph.node) - 1)
        nodes = self.model.graph.node[first : last + 1]
        names = [name for node in nodes for name in node.output if name]
        made = [value for value in self.run(inputs, names).values() if value.dtype == np.float32]
        return made if good else [*made, *(np.asarray(v, np.float32) for v in inputs.values() if v.dtype.kind == "f")]

    def values(self, inputs: Arrays, paths: Sequence[str]) -> dict[str, np.ndarray]:
        """Values by module path (export.graphs.block_marks names them), or by the name of a cache output.

        Raises:
            NotShown: the graph has no such value.
        """
        names = {path: path if path.startswith(PRESENT) else path + LEAVING for path in paths}
        missing = [path for path, name in names.items() if name not in self._producers]
        if missing:
            raise NotShown(f"the graph of {self.stage} has no value {', '.join(missing)}")
        outputs = self.run(inputs, list(names.values()))
        return {path: outputs[name] for path, name in names.items()}

    def run(self, inputs: Arrays, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Values of the graph by name; the decoder runs on an empty cache."""
        if not names:
            return {}
        session = self._session(names)
        feeds = self._feeds(session, inputs)
        outputs = session.run(list(names), feeds)
        return {
            name: np.asarray(value, np.float32) if value.dtype == np.float16 else value
            for name, value in zip(names, outputs, strict=True)
        }

    def _session(self, names: Sequence[str]) -> Any:
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        present = {output.name for output in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
        if self.exact:
            set_exact(model)
        return open_graph(model, self.folder)

    def _feeds(self, session: Any, inputs: Arrays) -> dict[str, np.ndarray]:
        given = dict(inputs)
        if self.stage == DECODER:
            tokens = inputs["inputs_embeds"].shape[1]
            given["attention_mask"] = np.ones((1, tokens), np.int64)
            names = [value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())]
            given |= logit_rows(names, given.pop(POSITIONS, np.arange(tokens)), tokens).feeds
        feeds = {}
        for value in (*session.get_inputs(), *session.get_overridable_initializers()):
            dtype = DTYPES[value.type]
            if value.name.startswith(PAST):
                feeds[value.name] = np.zeros((1, value.shape[1], inputs["inputs_embeds"].shape[1], value.shape[3]), dtype)
            elif value.name in given:
                feeds[value.name] = np.ascontiguousarray(given[value.name], dtype=dtype)
        return feeds


class OnnxStep(OnnxStage):
    """The decoder's graph on a filled cache.

    Args:
        cache: past keys and values by input name, (1, heads, capacity, width).
        length: positions filled.
    """

    def __init__(self, candidate: Candidate, cache: Mapping[str, np.ndarray], length: int) -> None:
        super().__init__(candidate, DECODER)
        self.cache, self.length = cache, length

    def _feeds(self, session: Any, inputs: Arrays) -> dict[str, np.ndarray]:
        feeds = super()._feeds(session, inputs)
        tokens = inputs["inputs_embeds"].shape[1]
        feeds["attention_mask"] = np.ones((1, self.length + tokens), np.int64)
        return {
            name: self.cache[name].astype(value.dtype) if name.startswith(PAST) else value for name, value in feeds.items()
        }
