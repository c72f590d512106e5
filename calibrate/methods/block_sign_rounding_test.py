"""A block's layers tuned together, on a demo's own block and samples."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from calibrate.blockwise import wanted_layers
from calibrate.methods.base import LayerProblem
from calibrate.methods.block_sign_rounding import BlockSignRounding
from calibrate.methods.sign_rounding import SignRounding
from calibrate.request import CalibrationRequest
from calibrate.run import calibrate, plan
from calibrate.samples.prompts import prompts_of
from calibrate.statistics.block_run import BlockRun
from calibrate.statistics.capture import stream
from calibrate.statistics.moments import Moment
from export.quantisation.codes import Codes
from export.quantisation.grids import GRIDS
from export.quantisation.stored import read_manifest

BLOCK = "decoder.layers.1"
Case = tuple[dict[str, LayerProblem], BlockRun]


class Seen(Exception):
    """Ends a stream at the block that was wanted."""


def weights(layers: Mapping[str, LayerProblem], codes: Mapping[str, Codes]) -> dict[str, torch.Tensor]:
    return {name: layer.weight + layer.change(codes[name]) for name, layer in layers.items()}


def check(model: str, target: str, look: object) -> None:
    """Stream a few samples to `BLOCK` and hand its layers and itself to ``look``."""
    request = CalibrationRequest(model, target, "mse-clip", Path("unused"), weights="demo", precision="int4", samples=6)
    planned = plan(request)
    backend = next(iter(planned.wanted))
    assignments, source = planned.assignments[backend], planned.checkpoint.weights
    assert source is not None
    chosen = frozenset(wanted_layers(assignments))
    processor, prompts = prompts_of(request, planned.checkpoint)

    def visit(block: str, moments: Mapping[str, Moment], run: BlockRun | None) -> None:
        if block == BLOCK:
            assert run is not None
            layers = {
                name: LayerProblem(name, source.tensor(f"{name}.weight").float(), GRIDS[assignments[name].grid], moment)
                for name, moment in moments.items()
            }
            look(layers, run)  # type: ignore[operator]
            raise Seen

    with pytest.raises(Seen):
        stream(planned.checkpoint.spec, source, prompts, processor, lambda name: name in chosen, visit)


@pytest.mark.parametrize(("model", "target"), [("minicpm-v", "cpu"), ("cogvlm2", "android"), ("wemm", "cpu")])
def test_together_lose_less_of_the_block_than_alone(model: str, target: str) -> None:
    def look(layers: Mapping[str, LayerProblem], run: BlockRun) -> None:
        whole = {name: layer.weight for name, layer in layers.items()}
        assert run.error(whole) == 0, "its own weights give its own output"
        plain = run.error(weights(layers, {name: layer.grid.quantise(layer.weight) for name, layer in layers.items()}))
        alone = run.error(weights(layers, {name: SignRounding(60).run(layer) for name, layer in layers.items()}))
        together = run.error(weights(layers, BlockSignRounding(60).tune(layers, run)))
        assert 0 < together < 0.9 * alone < 0.9 * plain
        assert all(parameter.grad is None for parameter in run.module.parameters())

    check(model, target, look)


def test_plain_rounding_is_kept_where_nothing_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockRun, "error", lambda self, weights: 1.0)

    def look(layers: Mapping[str, LayerProblem], run: BlockRun) -> None:
        outcomes = BlockSignRounding(2).tune(layers, run)
        for name, layer in layers.items():
            assert torch.equal(outcomes[name].codes, layer.grid.quantise(layer.weight).codes)

    check("minicpm-v", "cpu", look)


def test_a_calibration_with_it_repeats_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calibrate.run_test import contents, request

    monkeypatch.setattr(BlockSignRounding, "__init__", lambda self: SignRounding.__init__(self, 6))
    asked = {"method": "block-sign-rounding", "samples": 3, "held_out": 0, "precision": "int4"}
    first = calibrate(request(tmp_path / "first", **asked))
    assert contents(first) == contents(calibrate(request(tmp_path / "second", **asked)))
    assert len(read_manifest(first)["backends"]["onnx"]["layers"]) == 13
