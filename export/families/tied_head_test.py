"""A checkpoint whose head is its embedding may hold a head as well, which must equal it; one without a tie must hold one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from export.checkpoint.recognised import recognise_checkpoint
from export.modules.build import parameter_shapes
from export.source.tensor_source import TensorInfo, TensorSource
from parity_tests.reference.checkpoint_side import open_checkpoint
from runtime_py.errors import CheckpointError

GOLDENS = Path(__file__).parents[2] / "parity_tests" / "goldens"
CONFIGS = {
    "minicpm-v": ("config.json", ()),
    "minicpm-llama3-v": ("config.json", ()),
    "omnilmm-12b": ("config.json", ()),
    "wemm": ("config.json", ("text_config",)),
    "xverse-v": ("xverse-llm/config.json", ()),
    "awaker2.5-vl": ("config.json", ()),
    "cogvlm2": ("config.json", ()),
}
"""Where each golden says whether its head is tied."""


class WithHead:
    """A checkpoint whose stored head holds the rows of its embedding, but for one value."""

    def __init__(self, source: TensorSource, head: str, embedding: str, wrong_row: int | None) -> None:
        self.source, self.head, self.embedding, self.wrong_row = source, head, embedding, wrong_row
        self.infos: Mapping[str, TensorInfo] = source.infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        rows = self.source.read(self.embedding if name == self.head else name, start, stop)
        if name == self.head and self.wrong_row is not None and start <= self.wrong_row < start + len(rows):
            rows[self.wrong_row - start, 0] += 1
        return rows


class HeadAlone:
    """A checkpoint that holds its head and no embedding."""

    def __init__(self, source: TensorSource, embedding: str) -> None:
        self.source = source
        self.infos: Mapping[str, TensorInfo] = {name: info for name, info in source.infos.items() if name != embedding}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        assert name in self.infos
        return self.source.read(name, start, stop)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_stored_head_must_equal_the_embedding_it_is_tied_to(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDENS / name, tmp_path / "case", ignore=shutil.ignore_patterns("*.npz")))
    file, inner = CONFIGS[name]
    config = json.loads((folder / file).read_text())
    table = config
    for key in inner:
        table = table[key]
    table["tie_word_embeddings"] = True
    apart = open_checkpoint(folder)
    assert not apart.spec.decoder.tied_head
    (head,) = apart.weights.rules["decoder.head.weight"].sources
    (embedding,) = apart.weights.rules["embed_tokens.table.weight"].sources
    (folder / file).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"{head} is stored and differs from {embedding} in row 0") as caught:
        open_checkpoint(folder)
    assert "tie_word_embeddings to false" in caught.value.next_step
    recognised = recognise_checkpoint(folder)
    source = recognised.open_source()
    spec = recognised.spec(source)
    assert spec.decoder.tied_head
    tied = recognised.family.weight_map(spec, WithHead(source, head, embedding, None))
    tied.check(parameter_shapes(spec))
    assert tied.tensor("decoder.head.weight").equal(tied.tensor("embed_tokens.table.weight"))
    last = spec.embed.vocabulary - 1
    with pytest.raises(CheckpointError, match=f"differs from {embedding} in row {last}"):
        recognised.family.weight_map(spec, WithHead(source, head, embedding, last)).check(parameter_shapes(spec))
    stored = source.infos[head]
    longer = replace(stored, shape=(stored.shape[0] + 1, *stored.shape[1:]))
    for other, problem in ((longer, "wrong shape"), (replace(stored, dtype="int8"), "wrong dtype")):
        strange = WithHead(source, head, embedding, None)
        strange.infos = {**source.infos, head: other}
        with pytest.raises(CheckpointError, match=f"{problem}: {head}"):
            recognised.family.weight_map(spec, strange).check(parameter_shapes(spec))
    alone = recognised.family.weight_map(spec, HeadAlone(source, embedding))
    alone.check(parameter_shapes(spec))
    for target in ("decoder.head.weight", "embed_tokens.table.weight"):
        assert alone.tensor(target).equal(apart.weights.tensor("decoder.head.weight"))
    with pytest.raises(CheckpointError, match=f"missing: {embedding}"):
        recognised.family.weight_map(apart.spec, HeadAlone(source, embedding)).check(parameter_shapes(apart.spec))
