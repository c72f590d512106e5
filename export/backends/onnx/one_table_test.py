"""A head that is the embedding: in eight bits the package holds the matrix once, in the embedding's file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.backends.base import BuildOptions
from export.backends.onnx.backend import OnnxBackend
from export.backends.onnx.choices import HEAD, TABLE
from export.backends.onnx.conftest import EXACT, GOLDENS, TARGET, Package, export, prefill
from export.checkpoint.opened import open_folder
from export.plan.widths import whole
from export.quantisation.choice import widened
from export.quantisation.spec import Storage
from runtime_py.backends.onnx_files import external_files
from runtime_py.backends.ort import OrtBackend
from runtime_py.contracts import DECODER, EMBED

TOLERANCE = 0.02
"""Of predicted file sizes, as for other packages."""


def tied(case: str, folder: Path) -> Path:
    """A golden checkpoint with its embedding as its head."""
    shutil.copytree(GOLDENS / case, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}), encoding="utf-8")
    tensors = load_file(folder / "model.safetensors")
    del tensors["llm.lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tied("minicpm-v-2", tmp_path_factory.mktemp("tied") / "minicpm-v-2")


@pytest.fixture(scope="module")
def package(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return export(str(checkpoint), "int4", tmp_path_factory.mktemp("package"), **EXACT)


def test_the_head_is_read_from_the_embedding_s_file(package: Package) -> None:
    stages = package.manifest["backends"]["onnx"]["stages"]
    graphs = {stage: package.folder / stages[stage]["file"] for stage in (EMBED, DECODER)}
    (table,) = external_files(graphs[EMBED])
    assert set(external_files(graphs[DECODER])) == {table, f"{graphs[DECODER].name}_data"}
    model = onnx.load(str(graphs[DECODER]), load_external_data=False)
    onnx.checker.check_model(str(graphs[DECODER]))
    elsewhere = {t.name for t in model.graph.initializer for e in t.external_data if e.value == table}
    assert elsewhere == {"head.weight_codes", "head.weight_scales"}
    decoder = graphs[DECODER].with_name(f"{graphs[DECODER].name}_data").stat().st_size
    predicted = package.prediction.file_bytes[DECODER] - graphs[DECODER].stat().st_size
    assert abs(decoder - predicted) < TOLERANCE * decoder + 8_000  # the graph itself is predicted for full-size names


def test_its_logits_are_those_of_the_dequantised_table(package: Package) -> None:
    backend = OrtBackend(package.folder, package.manifest, threads=1)
    embeds, spec = package.golden["inputs_embeds"], package.spec.decoder
    tokens = embeds.shape[1]
    past, positions = torch.zeros(1, spec.kv_heads, 0, spec.head_dim), torch.arange(tokens)
    given = (torch.from_numpy(embeds), torch.ones(1, tokens, dtype=torch.long), positions[None], positions)
    with torch.no_grad():
        wanted = package.reference(DECODER)(*given, [(past, past)] * spec.layers)[0].numpy()
    np.testing.assert_allclose(prefill(backend, embeds, 64)[1], wanted, atol=1e-4)
    backend.close()


def test_the_plan_counts_it_once(package: Package) -> None:
    assignments = package.build.assignments
    assert assignments[HEAD].shares == TABLE and assignments[HEAD].storage is Storage.INT8
    counted = whole(assignments).weights
    assert counted == sum(a.layer.rows * a.layer.columns for name, a in assignments.items() if name != HEAD)
    assert widened("onnx", assignments, {})[HEAD] == assignments[HEAD], "a choice of bits leaves both operators their grids"


@pytest.mark.parametrize(("extra", "head"), [({"head_precision": "int4"}, "int4"), ({"embed_precision": "fp16"}, "int4")])
def test_other_storages_keep_two(checkpoint: Path, extra: dict[str, str], head: str) -> None:
    spec = open_folder(checkpoint).spec
    assignments = OnnxBackend().assignments(spec, BuildOptions(TARGET, "int4", TARGET.limits, extra))
    assert (assignments[HEAD].storage, assignments[HEAD].shares) == (head, "")


def test_a_model_that_browsers_hold_keeps_two_files_apart(tmp_path: Path) -> None:
    """A browser looks for a graph's weights under the graph's own name alone."""
    spec = open_folder(tied("minicpm-v", tmp_path / "minicpm-v")).spec
    assignments = OnnxBackend().assignments(spec, BuildOptions(TARGET, "int4", TARGET.limits, {}))
    assert not assignments[HEAD].shares and assignments[HEAD].storage is Storage.INT4
