"""A decoder that was taken over says what the given one says, whatever scales either has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export.demo.conftest import DELIVERED
from export.demo.model import MemorySource, Stages, initial_tensors
from export.demo.reference import Reference, recipe_of
from export.families.registry import families
from parity_tests.laboratory.demo_training.transfer import start_from
from runtime_py import tokenizer as tokenizers


@pytest.mark.parametrize("name", ["omnilmm-12b", "xverse-v"])
def test_the_decoder_of_minicpm_v_gives_its_own_logits_in_another_family(
    name: str, delivered: Reference, tmp_path: Path
) -> None:
    recipe, family = recipe_of(name), families()[name]
    for path, content in recipe.side_files().items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    spec, tensors = initial_tensors(recipe, family, 1)
    stages = Stages(spec, family.weight_map(spec, MemorySource(tensors)).rules)
    words = tokenizers.load(tmp_path)
    start_from(DELIVERED, "decoder", tensors, spec, stages.rules, words)
    text = "What color is the circle?"
    theirs = delivered.tokenizer.encode(text)
    pieces = tokenizers.load(DELIVERED).pieces
    index = {piece: token for token, piece in enumerate(words.pieces) if piece}
    ours = [index[pieces[token]] for token in theirs]
    shared = [token for token, piece in enumerate(pieces) if piece in index and piece not in pieces[token + 1 :]]
    renamed = [index[pieces[token]] for token in shared]
    assert len(shared) > 300
    with torch.no_grad():
        stages.derive(tensors)
        places = torch.arange(len(ours))
        turned = {"position_ids": places[None]}
        given, _ = delivered.stages.decode(delivered.stages.embed(torch.tensor([theirs])), turned, None, places)
        logits, _ = stages.decode(stages.embed(torch.tensor([ours])), turned, None, places)
    assert torch.allclose(logits[..., renamed], given[..., shared], atol=1e-3)
    assert float(given.std()) > 1.0


def test_a_connector_is_taken_over_with_the_tables_it_is_computed_from(delivered: Reference, tmp_path: Path) -> None:
    recipe, family = recipe_of("omnilmm-12b"), families()["omnilmm-12b"]
    spec, tensors = initial_tensors(recipe, family, 1)
    stages = Stages(spec, family.weight_map(spec, MemorySource(tensors)).rules)
    for path, content in recipe.side_files().items():
        (tmp_path / path).write_bytes(content)
    start_from(DELIVERED, "connector", tensors, spec, stages.rules, tokenizers.load(tmp_path))
    with torch.no_grad():
        stages.derive(tensors)
    mine, given = stages.parameters["connector"], delivered.stages.parameters["connector"]
    same = [name for name, value in given.items() if value.shape == mine[name].shape]
    assert len(same) == len(given) - 1
    assert all(torch.allclose(mine[name], given[name], atol=1e-5) for name in same)
