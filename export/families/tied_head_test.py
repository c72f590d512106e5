"""A checkpoint whose head is its embedding may hold a head as well, which is not read; one without a tie must."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from export.modules.build import parameter_shapes
from parity_tests.reference.checkpoint_side import open_checkpoint

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


@pytest.mark.parametrize("name", CONFIGS)
def test_a_tied_head_is_the_embedding_whatever_head_is_stored(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDENS / name, tmp_path / "case", ignore=shutil.ignore_patterns("*.npz")))
    file, inner = CONFIGS[name]
    config = json.loads((folder / file).read_text())
    table = config
    for key in inner:
        table = table[key]
    table["tie_word_embeddings"] = True
    apart = open_checkpoint(folder)
    assert not apart.spec.decoder.tied_head
    (folder / file).write_text(json.dumps(config))
    tied = open_checkpoint(folder)
    assert tied.spec.decoder.tied_head
    tied.weights.check(parameter_shapes(tied.spec))
    embedding = tied.weights.tensor("embed_tokens.table.weight")
    assert tied.weights.tensor("decoder.head.weight").equal(embedding)
    assert not apart.weights.tensor("decoder.head.weight").equal(embedding)
