"""What is asked of a kind of adapter: the shared kinds answer as their processors do, and backends ask nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calibrate.conftest import tiny_spec
from export.backends.base import BuildOptions
from export.backends.mlc.activations import decoder_activations
from export.backends.mlc.backend import MlcBackend
from export.backends.mlc.stock_engine import stock_engine
from export.backends.mlc.support import decoder_sides, explicit_positions, sequence_sides, text_selectors, unsupported
from export.backends.onnx.backend import OnnxBackend
from export.backends.onnx.stage_graphs import chosen_for
from export.backends.tensorrt.profiles import stage_profiles
from export.checkpoint.opened import published_specs
from export.families.registry import families
from export.graphs.trace import trace_stage
from export.modules.decoders.base import AdapterSpec
from export.modules.decoders.llama import Cache, DecoderLayers, LayerParts, Routed, Routing
from export.modules.decoders.specs import UNADAPTED
from export.modules.kernels import Kernels
from export.modules.kind import named_class
from export.quantisation.folds import decoder_folds
from export.specs import DecoderSpec, ModelSpec
from export.stages import contracts
from runtime_py.backends.stock_engine import Use
from runtime_py.contracts import DECODER, TensorContract
from runtime_py.errors import UnsupportedModelError
from targets.base import Limits
from targets.registry import target_named

HERE = "export.modules.decoders.adapter_kinds_test"
PUBLISHED = {family.name: spec for family, spec in published_specs()}
PICKED = {"wemm": {"image_rows": 0}, "cogvlm2": {"language_rows": 1, "vision_rows": 0}, "awaker2.5-vl": {}, "qwen2-vl": {}}
"""Axes of the shared kinds' own inputs and their sizes for a token of text, by a family that has each."""


@dataclass(frozen=True)
class Bare(AdapterSpec):
    """One that says nothing of itself and names what is not there."""

    module = "json:NoSuchClass"


@dataclass(frozen=True)
class Picked(AdapterSpec):
    """Rows of a picture are picked out, doubled, and put back in front of queries, keys and values."""

    module = f"{HERE}:PickedDecoder"
    every_token = "doubling"
    own_positions = True
    reads_embedding = True
    row_buffers = 3

    def inputs(self, decoder: DecoderSpec) -> tuple[TensorContract, ...]:
        return (
            TensorContract("picked_index", "int64", ("picked_rows",)),
            TensorContract("factor", "float32", ("batch", "tokens")),
        )

    def row_inputs(self, pictures: Sequence[bool]) -> dict[str, Any]:
        return {
            "picked_index": [row for row, picture in enumerate(pictures) if picture],
            "factor": [[1.0 + picture for picture in pictures]],
        }


@dataclass(frozen=True)
class Silent(Picked):
    """One that does not say what its indices are for a token of text."""

    def row_inputs(self, pictures: Sequence[bool]) -> dict[str, Any]:
        return {}


class Doubled(Routed):
    """The projection of a kind above."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        index, factor = routing
        y = self.inner(x) * factor[..., None]
        return y.index_add(1, index, y[:, index])


class PickedParts(LayerParts):
    def qkv(self, name: str) -> torch.nn.Module:
        return Doubled(super().qkv(f"{name}.inner"))


class PickedDecoder(DecoderLayers):
    parts = PickedParts

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        picked_index: Tensor,
        factor: Tensor,
        logit_positions: Tensor,
        past_key_values: Sequence[Cache],
    ) -> tuple[Tensor, list[Cache]]:
        given = inputs_embeds, attention_mask, position_ids, logit_positions, past_key_values
        return self.run(*given, (picked_index, factor))


def adapted(spec: ModelSpec, adapter: AdapterSpec | None) -> ModelSpec:
    return replace(spec, decoder=replace(spec.decoder, adapter=adapter))


@pytest.mark.parametrize("family", ["wemm", "cogvlm2"])
def test_rows_are_told_as_the_familys_processor_tells_them(family: str) -> None:
    """Of random runs of rows, none and all of them among these."""
    spec = tiny_spec(family)
    processor: Any = families()[family].make_processor(spec, None)
    mask = {"wemm": "image_mask", "cogvlm2": "vision_expert"}[family]
    drawn = np.random.default_rng(1)
    for share in (0.0, 0.2, 0.5, 0.8, 1.0):
        pictures = drawn.random(13) < share if 0 < share < 1 else np.full(13, bool(share))
        expected = processor.arrange({mask: pictures[None]})
        told = spec.decoder.layer_kind.row_inputs(pictures.tolist())
        assert told == {name: rows.tolist() for name, rows in expected.items()}
        assert set(told) == {tensor.name for tensor in spec.decoder.layer_kind.inputs(spec.decoder)}


@pytest.mark.parametrize("family", PICKED)
def test_axes_of_its_own_are_those_that_pick_out_rows(family: str) -> None:
    decoder = PUBLISHED[family].decoder
    assert decoder.layer_kind.own_axes(decoder) == PICKED[family]
    assert (decoder.layer_kind is UNADAPTED) is (decoder.adapter is None) is (family == "qwen2-vl")


def test_a_kind_of_its_own_is_asked_by_every_backend() -> None:
    whole = PUBLISHED["omnilmm-12b"]
    spec = adapted(whole, Picked())
    assert [tensor.name for tensor in contracts(spec)[DECODER].inputs][2:6] == [
        "position_ids", "picked_index", "factor", "logit_positions",
    ]  # fmt: skip
    limits = Limits(2048, 256, 4)
    found = {}
    for profile in stage_profiles(spec, DECODER, contracts(spec)[DECODER], limits):
        found[profile.name] = [sizes[0] for sizes in profile.shapes["picked_index"]], profile.shapes["factor"][2]
    assert found == {"decode": ([0] * 3, (1, 1)), "prefill": ([0, 128, 256], (1, 256)), "rows": ([0] * 3, (4, 1))}
    assert explicit_positions(spec.decoder) and not explicit_positions(whole.decoder)
    assert [tensor.name for tensor in decoder_sides(spec)] == ["position_ids", "picked_index", "factor"]
    assert [tensor.name for tensor in sequence_sides(spec)] == ["position_ids", "factor"]
    assert text_selectors(spec) == {"picked_index": []}
    assert decoder_activations(spec.decoder, 7, 2) == 3 * decoder_activations(whole.decoder, 7, 2)
    record = stock_engine(spec, limits)
    assert record.use is Use.NOTHING and record.reasons == (
        "every token goes through doubling; stock prefill and decode choose none",
    )
    cpu = target_named("cpu")
    embedded = [chosen_for(each, BuildOptions(cpu, "int4", cpu.limits)).embed_precision for each in (whole, spec)]
    assert embedded == ["int8", "fp16"]


def test_a_graph_has_the_inputs_of_its_kind() -> None:
    graph = trace_stage(adapted(tiny_spec("omnilmm-12b"), Picked()), DECODER, Kernels()).graph
    axes = {value.name: [dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in graph.input}
    assert (axes["picked_index"], axes["factor"]) == (["picked_rows"], ["batch", "tokens"])


def test_what_a_kind_does_not_say_is_left_alone() -> None:
    """No factor of a calibration is put where it might not be undone; text runs in stock functions, pictures too."""
    whole = PUBLISHED["omnilmm-12b"]
    folds = dict(decoder_folds(adapted(whole, Bare())))
    assert not any(folds[f"decoder.layers.{number}"] for number in range(whole.decoder.layers)) and folds["decoder.head"]
    assert decoder_sides(adapted(whole, Bare())) == []
    assert stock_engine(adapted(whole, Bare()), target_named("android").limits).use is Use.PICTURE


def test_what_no_backend_can_take_is_said_in_a_sentence() -> None:
    android, cpu = target_named("android"), target_named("cpu")
    whole = PUBLISHED["omnilmm-12b"]
    bare, picked = adapted(whole, Bare()), adapted(whole, Picked())
    assert unsupported(whole, False) == []
    assert unsupported(bare, False) == ["its decoder's adapter, Bare, has no Relax block"]
    with pytest.raises(UnsupportedModelError, match="its decoder's adapter, Bare, has no Relax block"):
        MlcBackend().refuse(bare, BuildOptions(android, "int4", android.limits))
    with pytest.raises(UnsupportedModelError, match="Bare names 'json:NoSuchClass'"):
        named_class(bare.decoder.layer_kind, bare.decoder.layer_kind.module)
    compiled = BuildOptions(cpu, "int4", cpu.limits, {"decoder_library": True})
    with pytest.raises(UnsupportedModelError, match=re.escape("adapter, Picked, which reads picked_index, factor")):
        OnnxBackend().refuse(picked, compiled)
    for spec in (*PUBLISHED.values(), bare):
        OnnxBackend().refuse(spec, compiled)
    with pytest.raises(NotImplementedError, match="Silent picks out rows and has no row_inputs for picked_index"):
        stage_profiles(adapted(whole, Silent()), DECODER, contracts(whole)[DECODER], cpu.limits)
