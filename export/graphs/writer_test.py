"""Layout and streaming: every byte where the graph says, nothing half-written, chunks of any size the same file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from export.graphs import stage_values
from export.graphs.layout import alignment, lay_out
from export.graphs.stage_values import StageWeights
from export.graphs.writer import parameters, write_stage
from export.quantisation.codes import Codes, RoundToNearest
from export.quantisation.grids import GRIDS
from export.quantisation.pack import unpack_unsigned
from export.quantisation.spec import Assignment, LayerShape, Storage
from runtime_py.errors import CheckpointError, MachineError

ROWS, COLUMNS = 70, 96
LAYER = "connector.key"
ASSIGNMENTS = {LAYER: Assignment(LayerShape(LAYER, "decoder", ROWS, COLUMNS), Storage.INT4, "ort_int4_asym_b32")}


class Weights:
    """Two parameters of a stage, kept in memory; remembers the largest piece asked for."""

    def __init__(self, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.held = {f"{LAYER}.weight": torch.randn(ROWS, COLUMNS, generator=generator) * scale}
        self.held["connector.norm.weight"] = torch.randn(COLUMNS, generator=generator) * scale
        self.largest = 0

    def shape(self, target: str) -> tuple[int, ...]:
        return tuple(self.held[target].shape)

    def tensor(self, target: str) -> Tensor:
        return self.held[target]

    def rows(self, target: str, start: int, stop: int | None) -> Tensor:
        piece = self.held[target][start:stop]
        self.largest = max(self.largest, piece.numel())
        return piece


def shells() -> onnx.ModelProto:
    """A graph whose initializers have no data, but for one constant."""
    blocks = COLUMNS // 32
    empty = [
        TensorProto(name="key.weight_codes", data_type=TensorProto.UINT8, dims=[ROWS, blocks, 16]),
        TensorProto(name="norm.weight", data_type=TensorProto.FLOAT16, dims=[COLUMNS]),
        TensorProto(name="key.weight_scales", data_type=TensorProto.FLOAT16, dims=[ROWS, blocks]),
        TensorProto(name="key.weight_zero_points", data_type=TensorProto.UINT8, dims=[ROWS, 2]),
    ]
    constant = numpy_helper.from_array(np.arange(3), "shape")
    return helper.make_model(helper.make_graph([], "g", [], [], [*empty, constant]))


def source(weights: Weights) -> StageWeights:
    return StageWeights("connector", weights, RoundToNearest(weights, ASSIGNMENTS, GRIDS), ASSIGNMENTS)


def ignore(_done: int, _total: int) -> None:
    """No progress wanted."""


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    weights, seen = Weights(), []
    graph, data = write_stage(shells(), source(weights), tmp_path / "s.onnx", lambda done, total: seen.append((done, total)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.onnx", "s.onnx_data"]
    model = onnx.load(str(graph))
    arrays = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in model.graph.initializer}
    codes = Codes(
        unpack_unsigned(arrays["key.weight_codes"].view(ROWS, -1), 4, COLUMNS),
        arrays["key.weight_scales"],
        unpack_unsigned(arrays["key.weight_zero_points"], 4, COLUMNS // 32),
    )
    grid = GRIDS["ort_int4_asym_b32"]
    wanted = grid.dequantise(grid.quantise(weights.held[f"{LAYER}.weight"]))
    assert torch.equal(grid.dequantise(codes), wanted)
    assert torch.equal(arrays["norm.weight"], weights.held["connector.norm.weight"].half())
    assert seen[-1][0] == seen[-1][1] == sum(int(e.value) for t in model_entries(graph) for e in t if e.key == "length")
    assert data.stat().st_size == max(end(t) for t in model_entries(graph))


def model_entries(graph: Path) -> list[list[onnx.StringStringEntryProto]]:
    model = onnx.load(str(graph), load_external_data=False)
    return [list(tensor.external_data) for tensor in model.graph.initializer if tensor.external_data]


def end(entries: list[onnx.StringStringEntryProto]) -> int:
    values = {entry.key: entry.value for entry in entries}
    return int(values["offset"]) + int(values["length"])


def test_the_chunk_changes_nothing_but_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [path.read_bytes() for path in write_stage(shells(), source(Weights()), tmp_path / "s.onnx", ignore)]
    monkeypatch.setattr(stage_values, "CHUNK", 4 * COLUMNS * 11)
    weights = Weights()
    pieces = [path.read_bytes() for path in write_stage(shells(), source(weights), tmp_path / "s.onnx", ignore)]
    assert pieces == whole
    assert weights.largest == 11 * COLUMNS


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"connector\.norm\.weight does not fit float16"):
        write_stage(shells(), source(Weights(scale=1e5)), tmp_path / "s.onnx", ignore)
    assert not list(tmp_path.iterdir())
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises((MachineError, OSError)):
        write_stage(shells(), source(Weights()), blocked / "s.onnx", ignore)


def test_only_initializers_without_data_are_parameters() -> None:
    assert [tensor.name for tensor in parameters(shells())] == [
        "key.weight_codes",
        "norm.weight",
        "key.weight_scales",
        "key.weight_zero_points",
    ]


@given(st.lists(st.tuples(st.sampled_from(["float32", "float16", "uint8", "int8"]), st.integers(0, 3_000_000)), max_size=12))
def test_places_are_aligned_in_order_and_apart(tensors: list[tuple[str, int]]) -> None:
    places, size = lay_out((str(index), dtype, (count,)) for index, (dtype, count) in enumerate(tensors))
    before = 0
    for place in places:
        assert place.offset % alignment(place.length) == 0
        assert before <= place.offset < before + alignment(place.length)
        before = place.offset + place.length
    assert size == before
