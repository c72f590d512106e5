"""Scales of a cache in bytes: the sizes they come from, what they round to, and their files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from calibrate.conftest import RandomWeights, decoder_call, tiny_spec
from calibrate.statistics.stage_stream import StageStream
from export.modules.build import build_stage
from export.modules.cache_kernels import WatchingKernels, pair_lengths
from export.modules.kernels import rotate
from export.quantisation.cache_scales import (
    KEY,
    STEPS,
    VALUE,
    CacheScales,
    ScaledWeights,
    read_scales,
    rounded,
    scale_name,
    write_scales,
)
from parity_tests.reference.arithmetic import Arithmetic, ArithmeticKernels
from runtime_py.contracts import DECODER
from runtime_py.errors import UsageError


@pytest.mark.parametrize("family", ["minicpm-v", "awaker2.5-vl", "cogvlm2"])
def test_sizes_are_those_of_what_the_decoder_keeps(family: str) -> None:
    spec = tiny_spec(family)
    weights, calls, kernels = RandomWeights(spec), [decoder_call(spec, seed=seed) for seed in (1, 2)], WatchingKernels()
    with torch.device("meta"):
        watched = build_stage(spec, DECODER, kernels)
    StageStream(DECODER, watched, weights, lambda _: False, lambda *_: None).run(calls, outputs=False)
    from export.modules.kernels import Kernels

    plain = build_stage(spec, DECODER, Kernels()).eval()
    plain.load_state_dict({name: weights.tensor(f"{DECODER}.{name}") for name, _ in plain.named_parameters()})
    with torch.no_grad():
        caches = [plain(**call)[1] for call in calls]
    for layer in range(spec.decoder.layers):
        keys, values = (torch.cat([cache[layer][half] for cache in caches]) for half in (0, 1))
        found = kernels.sizes[scale_name(layer, KEY)], kernels.sizes[scale_name(layer, VALUE)]
        assert found[0].shape == (spec.decoder.kv_heads, spec.decoder.head_dim)
        torch.testing.assert_close(found[0], pair_lengths(keys).amax((0, 2)))
        torch.testing.assert_close(found[1], values.abs().amax((0, 2)))


def test_no_position_makes_a_key_longer_than_its_pair() -> None:
    keys = torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    lengths = pair_lengths(keys)
    for turned in torch.linspace(0, 6, 40):
        angles = torch.full((1, 1, 6, 8), float(turned))
        moved = rotate(keys, angles.cos(), angles.sin())
        assert bool((moved.abs() <= lengths + 1e-5).all())
        torch.testing.assert_close(pair_lengths(moved), lengths)


def test_rounding_is_by_channel_and_cuts_what_is_too_large() -> None:
    scale = torch.tensor([[1.0, 0.1, 2.0]])
    x = torch.tensor([0.5, 0.16, 1000.0]).reshape(1, 1, 1, 3)
    torch.testing.assert_close(rounded(x, scale).flatten(), torch.tensor([0.0, 0.2, 2.0 * STEPS]))
    torch.testing.assert_close(rounded(-x, scale).flatten(), torch.tensor([0.0, -0.2, -256.0]))


def test_a_decoder_over_bytes_is_near_the_one_that_keeps_all() -> None:
    from export.modules.kernels import Kernels

    spec = tiny_spec("minicpm-v")
    weights, call, watching = RandomWeights(spec), decoder_call(spec), WatchingKernels()

    def said(kernels: Kernels) -> torch.Tensor:
        module = build_stage(spec, DECODER, kernels).eval()
        module.load_state_dict({name: weights.tensor(f"{DECODER}.{name}") for name, _ in module.named_parameters()})
        with torch.no_grad():
            logits: torch.Tensor = module(**call)[0]
        return logits

    plain = said(watching)
    scales = CacheScales.of_sizes(watching.sizes)
    scales.check(spec.decoder)
    near, far = (
        said(ArithmeticKernels(Arithmetic(cache=scales))),
        said(ArithmeticKernels(Arithmetic(cache=CacheScales({n: s / 8 for n, s in scales.tensors.items()})))),
    )
    errors = [float((other - plain).norm() / plain.norm()) for other in (near, far)]
    assert 1e-4 < errors[0] < 2e-2 < errors[1]


def test_they_are_stored_and_stand_among_the_parameters(tmp_path: Path) -> None:
    spec = tiny_spec("minicpm-v")
    sizes = {
        scale_name(layer, half): torch.rand(spec.decoder.kv_heads, spec.decoder.head_dim)
        for layer in range(spec.decoder.layers)
        for half in (KEY, VALUE)
    }
    sizes[scale_name(0, KEY)][0, 0] = 0
    scales = CacheScales.of_sizes(sizes)
    assert scales.tensors[scale_name(0, KEY)][0, 0] == 1
    write_scales(tmp_path / "a.safetensors", scales)
    write_scales(tmp_path / "b.safetensors", read_scales(tmp_path / "a.safetensors"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    width = spec.decoder.head_dim + 3
    weights, name = ScaledWeights(RandomWeights(spec), scales, width), scale_name(1, VALUE)
    assert weights.shape(name) == (spec.decoder.kv_heads, 1, width)
    assert torch.equal(weights.tensor(name)[:, 0, : spec.decoder.head_dim], scales.tensors[name])
    assert torch.equal(weights.rows(name, 1, 2)[0, 0, -3:], torch.ones(3))
    assert torch.equal(weights.tensor("decoder.norm.weight"), RandomWeights(spec).tensor("decoder.norm.weight"))


def test_scales_of_another_model_are_refused() -> None:
    decoder = tiny_spec("minicpm-v").decoder
    shape = (decoder.kv_heads, decoder.head_dim)
    good = {scale_name(layer, half): torch.ones(shape) for layer in range(decoder.layers) for half in (KEY, VALUE)}
    CacheScales(good).check(decoder)
    name = scale_name(0, KEY)
    for wrong in (torch.ones(1, 3), torch.zeros(shape), torch.full(shape, float("nan"))):
        with pytest.raises(UsageError, match=name):
            CacheScales({**good, name: wrong}).check(decoder)
    with pytest.raises(UsageError, match="do not fit"):
        CacheScales({key: value for key, value in good.items() if key != name}).check(decoder)
