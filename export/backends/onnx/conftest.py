"""Packages of the golden checkpoints, exported once for the tests of this folder, and what runs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.backends.base import Build, BuildOptions, Prediction
from export.backends.onnx.backend import OnnxBackend
from export.checkpoint.opened import open_folder
from export.modules.build import build_stage
from export.modules.cache_kernels import WatchingKernels
from export.modules.kernels import Kernels
from export.quantisation.cache_scales import CacheScales
from export.quantisation.codes import DequantisedWeights, RoundToNearest, WeightProvider
from export.quantisation.grids import GRIDS
from export.specs import ModelSpec
from export.stages import contracts
from runtime_py.backends.onnx_files import external_files
from runtime_py.backends.ort import OrtBackend
from runtime_py.backends.records import ONNX
from runtime_py.contracts import DECODER, EMBED, STAGES
from runtime_py.package.files import rows_of
from targets.base import Limits, Target

GOLDENS = Path(__file__).parents[3] / "parity_tests" / "goldens"
TARGET = Target("cpu", "", (ONNX,), ("int4", "fp16", "fp32"), Limits(64, 16), (), ())
EXACT: dict[str, Any] = {"accuracy_level": 0, "cache": "float32", "vision_precision": "int8_weights"}
"""Options under which nothing but the weights is quantised, so that a package can be compared tightly."""


@dataclass(frozen=True)
class Package:
    """A written package with everything around it."""

    folder: Path
    spec: ModelSpec
    weights: WeightProvider
    build: Build
    manifest: dict[str, Any]
    prediction: Prediction
    golden: dict[str, np.ndarray]

    def reference(self, stage: str) -> torch.nn.Module:
        """The stage in PyTorch, holding what the package holds."""
        weights = DequantisedWeights(self.build.weights, self.build.codes, self.build.assignments, GRIDS)
        module = build_stage(self.spec, stage, Kernels()).eval()
        module.load_state_dict({n: weights.tensor(f"{stage}.{n}").float() for n, _ in module.named_parameters()})
        return module

    def sizes(self) -> dict[str, int]:
        bytes_of = {}
        for stage, entry in self.manifest["backends"]["onnx"]["stages"].items():
            graph = self.folder / entry["file"]
            bytes_of[stage] = sum((graph.parent / name).stat().st_size for name in (graph.name, *external_files(graph)))
        return bytes_of


def export(case: str, precision: str, folder: Path, stages: tuple[str, ...] = STAGES, **extra: Any) -> Package:
    """Export some stages of a golden checkpoint."""
    checkpoint = GOLDENS / case
    opened = open_folder(checkpoint)
    spec, weights = opened.spec, opened.weights
    assert weights is not None
    backend, options = OnnxBackend(), BuildOptions(TARGET, precision, TARGET.limits, extra)
    assignments = backend.assignments(spec, options)
    codes = RoundToNearest(weights, assignments, GRIDS)
    processor = opened.family.make_processor(spec)
    golden = {**np.load(checkpoint / "inputs.npz"), **np.load(checkpoint / "outputs.npz")}
    scales = cache_scales(spec, weights, golden) if backend.wants_cache_scales(options) else None
    build = Build(spec, options, assignments, weights, codes, opened, folder, lambda *_: None, processor, scales)
    for step in backend.steps(build):
        if step.name.removeprefix("onnx ") in stages or stages == STAGES:
            assert all((folder / file).is_file() for file in step.run())
    block = backend.manifest(build) if stages == STAGES else {}
    manifest = {
        "backends": {"onnx": block},
        "contracts": {s: c.to_json() for s, c in contracts(spec).items()},
        "files": rows_of(folder),
    }
    return Package(folder, spec, weights, build, manifest, backend.predict(spec, options, assignments), golden)


def cache_scales(spec: ModelSpec, weights: WeightProvider, golden: dict[str, np.ndarray]) -> CacheScales:
    """Of a cache in bytes, chosen from the golden's own prompt."""
    kernels = WatchingKernels()
    decoded(spec, weights, kernels, golden["inputs_embeds"])
    return CacheScales.of_sizes(kernels.sizes)


def decoded(spec: ModelSpec, weights: WeightProvider, kernels: Kernels, embeds: np.ndarray) -> np.ndarray:
    """Logits (1, tokens, vocabulary) of a prompt (1, tokens, hidden) in PyTorch."""
    module, decoder = build_stage(spec, DECODER, kernels).eval(), spec.decoder
    module.load_state_dict({n: weights.tensor(f"{DECODER}.{n}").float() for n, _ in module.named_parameters()})
    positions, past = torch.arange(embeds.shape[1]), torch.zeros(1, decoder.kv_heads, 0, decoder.head_dim)
    given = (torch.from_numpy(embeds), torch.ones_like(positions)[None], positions[None], positions)
    with torch.no_grad():
        return np.asarray(module(*given, [(past, past)] * decoder.layers)[0].numpy())


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return export("minicpm-v", "fp32", tmp_path_factory.mktemp("fp32"))


@pytest.fixture(scope="session")
def second(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return export("minicpm-v-2", "fp32", tmp_path_factory.mktemp("sliced"))


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return export("minicpm-v", "int4", tmp_path_factory.mktemp("int4"), **EXACT)


@pytest.fixture(scope="session")
def default_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder graph of an int4 package with the default options."""
    package = export("minicpm-v", "int4", tmp_path_factory.mktemp("default"), (DECODER,))
    return package.folder / "onnx" / "decoder_model_merged_q4f16.onnx"


@pytest.fixture
def runtime(first: Package) -> Iterator[OrtBackend]:
    backend = OrtBackend(first.folder, first.manifest, threads=1)
    yield backend
    backend.close()


def prefill(backend: OrtBackend, embeds: np.ndarray, chunk: int, capacity: int = 64) -> tuple[Any, np.ndarray]:
    """Feed ``embeds`` in chunks; the state and the logits of every position."""
    state, logits = backend.start(capacity), []
    for start in range(0, embeds.shape[1], chunk):
        part = embeds[:, start : start + chunk]
        positions = np.arange(start, start + part.shape[1])
        inputs = {"inputs_embeds": part, "position_ids": positions[None]}
        logits.append(backend.forward(state, inputs, np.arange(part.shape[1])))
    return state, np.concatenate(logits, axis=1)


def greedy(backend: OrtBackend, state: Any, logits: np.ndarray, steps: int) -> tuple[list[int], np.ndarray]:
    """The next ``steps`` tokens and the logits each was taken from."""
    ids, taken = [], []
    for _ in range(steps):
        taken.append(logits[:, -1:])
        ids.append(int(logits[0, -1].argmax()))
        embeds = backend.run(EMBED, {"input_ids": np.array([[ids[-1]]])})["inputs_embeds"]
        logits = backend.forward(
            state, {"inputs_embeds": embeds, "position_ids": np.array([[state.length]])}, np.array([-1])
        )
    return ids, np.concatenate(taken, axis=1)
