"""What a pass leaves out changes nothing that is kept of it, and passes of two kinds are never mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from calibrate.conftest import RandomWeights, decoder_call, tiny_spec
from calibrate.record import fingerprint
from calibrate.run import calibrate, plan
from calibrate.run_test import request
from calibrate.samples.prompts import prompts_of
from calibrate.statistics import passes
from calibrate.statistics.block_run import BlockRun
from calibrate.statistics.moments import SUM_COLUMNS, Moment
from calibrate.statistics.passes import PLAIN, Passes, has_bfloat16
from calibrate.statistics.stage_stream import StageStream
from export.modules.build import build_stage
from export.modules.kernels import Kernels
from export.package.journal import Journal
from export.specs import ModelSpec
from runtime_py.errors import UsageError


class Visited:
    """A stream's moments and outputs, with weights that every visit halves."""

    def __init__(self, spec: ModelSpec, passes: Passes, change: bool = True) -> None:
        self.weights, self.changes = RandomWeights(spec), change
        self.moments: dict[str, Moment] = {}
        self.runs: list[BlockRun | None] = []
        with torch.device("meta"):
            module = build_stage(spec, "decoder", Kernels())
        stream = StageStream("decoder", module, self.weights, lambda _: True, self.visit, passes=passes)
        calls = [decoder_call(spec, tokens, seed) for tokens, seed in ((12, 1), (9, 2), (15, 3))]
        self.outputs = stream.run(calls)

    def visit(self, block: str, moments: Mapping[str, Moment], run: BlockRun | None) -> Any:
        self.moments.update(moments)
        self.runs.append(run)
        for layer in moments:
            self.weights.parameters[f"{layer}.weight"] *= 0.5
        return self.weights if self.changes else None


def same(one: Visited, other: Visited) -> None:
    assert set(one.moments) == set(other.moments)
    for name, moment in one.moments.items():
        assert moment.count == other.moments[name].count, name
        assert torch.equal(moment.matrix, other.moments[name].matrix), name
    for got, wanted in zip(one.outputs, other.outputs, strict=True):
        assert torch.equal(got, wanted)


def test_a_pass_that_ends_at_the_last_layer_sees_the_same(spec: ModelSpec) -> None:
    short = Visited(spec, Passes(discarded=True))
    same(short, Visited(spec, PLAIN))
    assert short.runs and not any(short.runs)


def test_outputs_come_though_no_weights_changed(spec: ModelSpec) -> None:
    same(Visited(spec, Passes(discarded=True), change=False), Visited(spec, PLAIN, change=False))


def test_the_last_layer_is_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, counts = tiny_spec("minicpm-v"), []
    product = torch.nn.functional.linear

    def counted(*given: Any) -> torch.Tensor:
        counts.append(given[1].shape)
        return product(*given)

    monkeypatch.setattr("export.modules.kernels.F.linear", counted)
    Visited(spec, PLAIN)
    whole, down = len(counts), (spec.decoder.hidden, spec.decoder.mlp_width)
    downs = counts.count(torch.Size(down))
    counts.clear()
    Visited(spec, Passes(discarded=True))
    # of three calls the first of every block is whole
    assert whole - len(counts) == downs - counts.count(torch.Size(down)) == 2 * spec.decoder.layers


def test_blocks_of_an_earlier_run_are_passed_once_and_not_looked_at() -> None:
    spec = tiny_spec("minicpm-v")
    weights, asked, seen = RandomWeights(spec), [], []
    first = "decoder.layers.0"

    def settled(block: str, layers: Sequence[str]) -> bool:
        asked.append(block)
        if block != first:
            return False
        assert f"{first}.attention.qkv" in layers
        for layer in layers:
            weights.parameters[f"{layer}.weight"] *= 0.5
        return True

    with torch.device("meta"):
        module = build_stage(spec, "decoder", Kernels())
    halved = Visited(spec, PLAIN)
    stream = StageStream(
        "decoder", module, weights, lambda _: True, lambda block, *_: seen.append(block), passes=Passes(settled)
    )
    stream.run([decoder_call(spec, tokens, seed) for tokens, seed in ((12, 1), (9, 2), (15, 3))], outputs=False)
    later = [f"decoder.layers.{index}" for index in range(1, spec.decoder.layers)]
    assert asked == [first, *later, "decoder.head"]
    assert seen == [*later, "decoder.head"]
    for layer in ("attention.qkv", "mlp.down"):
        name = f"{first}.{layer}.weight"
        assert torch.equal(weights.parameters[name], halved.weights.parameters[name])


def test_products_of_bfloat16_are_near(spec: ModelSpec) -> None:
    near, exact = Visited(spec, Passes(discarded=True, half=True)), Visited(spec, PLAIN)
    for name, moment in exact.moments.items():
        if moment.count:
            error = (near.moments[name].matrix - moment.matrix).norm() / moment.matrix.norm()
            assert float(error) < 0.03, name
    assert all(output.dtype == torch.float32 for output in near.outputs)
    assert any(not torch.equal(got, wanted) for got, wanted in zip(near.outputs, exact.outputs, strict=True))


def test_a_wide_moment_is_symmetric_and_whole() -> None:
    columns = 2 * SUM_COLUMNS + 70
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(rows, columns, generator=generator) for rows in (40, 3)]
    moment = Moment(columns)
    moment.add(parts[0])
    first = moment.matrix.clone()
    torch.testing.assert_close(first, parts[0].T @ parts[0], rtol=1e-4, atol=1e-4)
    moment.add(parts[1], torch.full((3,), 2.0))
    torch.testing.assert_close(moment.matrix, first + 2 * parts[1].T @ parts[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(moment.matrix, moment.matrix.T)


@pytest.mark.parametrize(
    ("listed", "has"),
    [({"avx2", "avx512_bf16"}, True), ({"amx_tile", "amx_bf16"}, True), ({"amx_tile"}, False), (set(), False)],
)
def test_the_processor_says_whether_it_multiplies_bfloat16(
    listed: set[str], has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "instructions", lambda: listed)
    assert has_bfloat16() is has


def test_a_calibration_in_bfloat16_does_not_go_on_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(tmp_path / "codes", samples=2)
    checkpoint = plan(asked).checkpoint
    prompts = prompts_of(asked, checkpoint)[1]
    plain = fingerprint(asked, checkpoint, prompts)
    assert "passes" not in plain
    with monkeypatch.context() as patch:
        patch.setattr(passes, "HALF_FROM", 1)
        patch.setattr(passes, "has_bfloat16", lambda: True)
        half = fingerprint(asked, checkpoint, prompts)
        assert half == {**plain, "passes": "bfloat16"}
        together = replace(asked, method="block-sign-rounding")
        assert "passes" not in fingerprint(together, checkpoint, prompts), "whole blocks are float32 everywhere"
    partial = tmp_path / "codes.partial"
    partial.mkdir()
    Journal(partial, half).begin()
    with pytest.raises(UsageError, match='passes: "bfloat16" then, null now'):
        calibrate(replace(asked, resume=True))
