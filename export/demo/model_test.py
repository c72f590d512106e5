"""Published tensors drive the stages: joined as the exporter joins them, and every one of them learns."""

from __future__ import annotations

import torch

from export.demo.model import MemorySource, Stages, initial_tensors, selected
from export.demo.recipes.minicpm_v import CONFIG, HIDDEN, QUERIES, RECIPE, SIDE
from export.families.registry import families
from runtime_py.preprocess.resample import sine_table

FAMILY = families()["minicpm-v"]
SPEC, TENSORS = initial_tensors(RECIPE, FAMILY, 5)
RULES = FAMILY.weight_map(SPEC, MemorySource(TENSORS)).rules


def stages() -> Stages:
    return Stages(SPEC, RULES)


def test_equal_seeds_start_from_equal_tensors() -> None:
    again = initial_tensors(RECIPE, FAMILY, 5)[1]
    other = initial_tensors(RECIPE, FAMILY, 6)[1]
    assert all(torch.equal(value, again[name]) for name, value in TENSORS.items())
    assert not torch.equal(TENSORS["llm.lm_head.weight"], other["llm.lm_head.weight"])


def test_the_general_start_gives_unit_activations() -> None:
    assert torch.equal(TENSORS["vpm.norm.weight"], torch.ones(96))
    assert torch.equal(TENSORS["resampler.ln_q.bias"], torch.zeros(HIDDEN))
    embedded = TENSORS["llm.model.embed_tokens.weight"] * CONFIG["scale_emb"]
    assert 0.95 < float(embedded.std()) < 1.05
    assert torch.equal(TENSORS["resampler.pos_embed"], torch.from_numpy(sine_table(3, 3, HIDDEN)))


def test_derived_parameters_are_those_the_exporter_reads() -> None:
    built = stages()
    built.derive(TENSORS)
    weights = FAMILY.weight_map(SPEC, MemorySource(TENSORS))
    for target in weights.rules:
        stage, _, path = target.partition(".")
        torch.testing.assert_close(built.parameters[stage][path], weights.tensor(target), rtol=0, atol=0)


def test_only_the_chosen_matrices_are_rounded() -> None:
    built, plain = stages(), stages()
    plain.derive(TENSORS)
    built.derive(TENSORS, ["decoder.head.weight"], torch.zeros_like)
    assert not built.parameters["decoder"]["head.weight"].any()
    same = [torch.equal(v, plain.parameters[s][n]) for s, d in built.parameters.items() for n, v in d.items()]
    assert same.count(False) == 1


def test_gradients_reach_every_published_tensor_but_the_fixed_ones() -> None:
    learnt = {name: value.clone().requires_grad_(name not in RECIPE.fixed) for name, value in TENSORS.items()}
    built = stages()
    built.derive(learnt)
    _, rows = built.see({"pixel_values": torch.randn(2, 3, SIDE, SIDE)}, {})
    assert rows.shape == (2, QUERIES, HIDDEN)
    ids = torch.randint(SPEC.embed.vocabulary, (2, 5))
    embeds = torch.cat([rows, built.embed(ids)], 1)
    positions = {"position_ids": torch.arange(embeds.shape[1])[None].expand(2, -1)}
    logits, _ = built.decode(embeds, positions, None, torch.tensor([-1]))
    logits.square().sum().backward()
    silent = {name for name, value in learnt.items() if value.grad is None or not value.grad.any()}
    assert silent == set(RECIPE.fixed)


def test_decoding_in_two_parts_equals_decoding_at_once() -> None:
    built = stages()
    with torch.no_grad():
        built.derive(TENSORS)
        embeds = torch.randn(2, 9, HIDDEN)
        positions = torch.arange(9)[None].expand(2, -1)
        whole, _ = built.decode(embeds, {"position_ids": positions}, None, torch.tensor([-1]))
        _, cache = built.decode(embeds[:, :6], {"position_ids": positions[:, :6]}, None, torch.tensor([-1]))
        order = selected(cache, [1, 0])
        parts, _ = built.decode(embeds[[1, 0], 6:], {"position_ids": positions[:, 6:]}, order, torch.tensor([-1]))
    torch.testing.assert_close(parts, whole[[1, 0]], rtol=1e-4, atol=1e-5)
