"""Values inside a stage by module path, on either side of a comparison: hooks in PyTorch, named values of an ONNX graph.

Paths are those of `export.modules`: ``norm`` and ``layers.0.gates.out`` stand for what leaves the module, ``blocks.input``
and ``conv.input`` for what enters it. In a package the values carry these names (export.graphs.block_marks).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from parity_tests.backends.examiner import NotShown
from parity_tests.check.candidate import Candidate
from parity_tests.judging.probes import Question
from parity_tests.reference.reference import TorchBackend, to_numpy
from runtime_py.backends.base import Arrays, Backend, DecoderState
from runtime_py.contracts import DECODER
from runtime_py.generation.session import Limits, Session
from runtime_py.preprocess.base import ImageInputs, Layout

ENTERING = ".input"


class Listener:
    """A backend that passes everything on and keeps the inputs of each stage's calls; of the decoder only the first."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.calls: dict[str, list[Arrays]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def run(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        self.calls.setdefault(stage, []).append(dict(inputs))
        return self._backend.run(stage, inputs)

    def forward(self, state: DecoderState, inputs: Arrays, logit_positions: np.ndarray) -> np.ndarray:
        self.calls.setdefault(DECODER, [dict(inputs)])
        return self._backend.forward(state, inputs, logit_positions)

    read = forward


class AskedOnce:
    """One question asked of one side, the whole prompt in one decoder call, with what every stage was fed.

    Attributes:
        merged: (1, tokens, hidden), the prompt with its image rows.
    """

    def __init__(self, side: Candidate, asked: Question) -> None:
        self.side = side
        self._listener = Listener(side.backend)
        context = max(side.limits.context, asked.input_ids.shape[1])
        self.session = Session(self._listener, side.processor, Limits(context, context))  # type: ignore[arg-type]
        self.images: list[ImageInputs] = side.processor.images(asked.pictures) if asked.pictures else []
        self.layout: Layout = side.processor.layout(asked.input_ids, self.images)
        self.features = self.session.features(self.images)
        self.merged = self.session.merge(self.layout, self.features)

    def stage_calls(self, stage: str) -> Sequence[Arrays]:
        """What a stage was fed, call by call.

        Raises:
            NotShown: the backend runs this stage only together with another.
        """
        if stage == DECODER and stage not in self._listener.calls:
            self.session.prefill(self.merged, self.layout)
        if stage not in self._listener.calls:
            raise NotShown(f"backend {self.side.name} runs {stage} only together with another stage")
        return self._listener.calls[stage]

    def values(self, stage: str, path: str) -> list[np.ndarray]:
        """One value of every call of a stage; see `inside`."""
        return [inside(self.side, stage, inputs, [path])[path] for inputs in self.stage_calls(stage)]


def inside(side: Candidate, stage: str, inputs: Arrays, paths: Iterable[str]) -> Mapping[str, np.ndarray]:
    """Values inside a stage for given inputs, by path; the decoder runs on an empty cache.

    Raises:
        NotShown: the backend shows nothing inside its stages, or has no such value.
    """
    wanted = list(paths)
    if isinstance(side.backend, TorchBackend):
        return _of_modules(side.backend, stage, inputs, wanted)
    view = side.examiner.stage_view(side, stage)
    if view is None:
        raise NotShown(f"backend {side.name} shows no value inside {stage}; compared on the reference alone")
    return view.values(inputs, wanted)


def _of_modules(backend: TorchBackend, stage: str, inputs: Arrays, paths: Sequence[str]) -> dict[str, np.ndarray]:
    outputs: dict[str, np.ndarray] = {}
    modules = dict(backend.stage(stage).named_modules())
    handles = []

    def leaving(path: str) -> Any:
        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            outputs[path] = to_numpy(output[0] if isinstance(output, tuple) else output)

        return keep

    def entering(path: str) -> Any:
        def keep(_module: Any, given: Any) -> None:
            outputs[path] = to_numpy(given[0])

        return keep

    try:
        for path in paths:
            owner = path.removesuffix(ENTERING)
            if path.startswith("present."):
                continue
            if owner not in modules:
                raise NotShown(f"{stage} has no module {owner}")
            if path.endswith(ENTERING):
                module = modules[f"{owner}.0"] if f"{owner}.0" in modules else modules[owner]
                handles.append(module.register_forward_pre_hook(entering(path)))
            else:
                handles.append(modules[path].register_forward_hook(leaving(path)))
        outputs |= _run(backend, stage, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {path: outputs[path] for path in paths}


def _run(backend: TorchBackend, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
    """Run a stage once; the decoder's cache afterwards under ``present.N.key`` and ``present.N.value``."""
    if stage != DECODER:
        backend.run(stage, inputs)
        return {}
    tokens = inputs["inputs_embeds"].shape[1]
    state = backend.start(tokens)
    backend.forward(state, inputs, np.arange(tokens))
    halves = (("key", 0), ("value", 1))
    return {f"present.{i}.{name}": to_numpy(pair[at]) for i, pair in enumerate(state.cache) for name, at in halves}
