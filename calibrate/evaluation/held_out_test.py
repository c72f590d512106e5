"""The check that ends a calibration: what goes back to rounding, what is kept, what a reader sees of it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrate import blockwise
from calibrate.command.cli import main
from calibrate.evaluation.evaluate import DemoEvaluation
from calibrate.evaluation.evaluate_samples import BUILT_IN, SampleEvaluation, judge_of
from calibrate.evaluation.held_out import SINGLY, Figures, count_of, returned
from calibrate.evaluation.score import Positions
from calibrate.request import HELD_OUT, CalibrationRequest
from calibrate.run import calibrate, plan
from calibrate.run_test import contents, request
from export.families.registry import families
from export.quantisation.codes import DequantisedWeights, RoundToNearest
from export.quantisation.grids import GRIDS
from export.quantisation.stored import StoredCodes, read_manifest
from export.source.tensor_source import EmptySource
from runtime_py.errors import ExitCode, InterruptedExportError, UsageError

PLAIN = Figures(1.0, 0.9)
PICTURES = 12


def checked(output: Path, **changes: object) -> CalibrationRequest:
    return request(output, **{"precision": "int4", "held_out": PICTURES, **changes})


def figures(kl: float, cosine: float) -> Figures:
    """Beside `PLAIN`, known without error."""
    return Figures(kl, cosine, kl - PLAIN.kl, 0.0, PLAIN.cosine - cosine, 0.0)


class Table:
    """Figures by the set of blocks that are rounded; everything rounded is `PLAIN`."""

    def __init__(self, blocks: int, cost: Mapping[str, float]) -> None:
        self.blocks = [str(number) for number in range(blocks)]
        self.cost, self.asked = cost, set[frozenset[str]]()

    def __call__(self, rounded: frozenset[str]) -> Figures:
        self.asked.add(rounded)
        if len(rounded) == len(self.blocks):
            return PLAIN
        kl = 0.5 + sum(cost for block, cost in self.cost.items() if block not in rounded)
        return figures(kl, 0.95 if kl <= 1 else 0.85)


def test_codes_that_are_no_worse_stay() -> None:
    table = Table(3, {"1": 0.5})
    assert returned(table.blocks, table) == []
    assert len(table.asked) == 1


def test_the_blocks_that_make_it_worse_go_back_first() -> None:
    table = Table(5, {"1": 0.3, "3": 0.6, "4": 0.1})
    assert returned(table.blocks, table) == ["3"]
    table = Table(5, {"1": 0.6, "3": 0.6, "4": 0.1})
    assert returned(table.blocks, table) == ["1", "3"]


def test_blocks_go_back_by_the_figure_that_is_behind() -> None:
    """Block 0 costs cosine and no KL, block 1 the other way round; only the cosine is behind rounding's."""
    blocks = ["0", "1", "2"]

    def measure(rounded: frozenset[str]) -> Figures:
        if len(rounded) == 3:
            return PLAIN
        return figures(0.9 - 0.5 * ("1" in rounded), 0.8 + 0.15 * ("0" in rounded))

    assert returned(blocks, measure) == ["0"]


def test_a_model_of_many_blocks_goes_back_whole() -> None:
    table = Table(SINGLY + 1, {"1": 0.6})
    assert returned(table.blocks, table) == table.blocks
    assert len(table.asked) == 1


@given(st.lists(st.floats(0, 2), min_size=1, max_size=8), st.data())
def test_what_is_kept_is_never_worse_than_rounding(costs: list[float], data: st.DataObject) -> None:
    """Even where blocks' effects do not add up at all."""
    blocks = [str(number) for number in range(len(costs))]
    seen: dict[frozenset[str], Figures] = {frozenset(blocks): PLAIN}

    def measure(rounded: frozenset[str]) -> Figures:
        if rounded not in seen:
            seen[rounded] = figures(data.draw(st.floats(0, 2)), data.draw(st.floats(0.5, 1)))
        return seen[rounded]

    gone = returned(blocks, measure)
    assert measure(frozenset(gone)).no_worse
    assert len(seen) <= max(2, 2 * len(blocks))


def test_only_a_difference_beyond_chance_counts() -> None:
    """The same mean difference, made by one position of a hundred or by all of them."""
    plain = Positions(torch.full((100,), 0.1).double(), torch.full((100,), 0.9).double(), torch.ones(100).bool())
    one, every = (
        plain.kl.clone(),
        plain.kl + 0.01 + 0.02 * torch.randn(100, generator=torch.Generator().manual_seed(1)).double(),
    )
    one[7] += 1.0
    odd, steady = (Figures.of(replace(plain, kl=kl), plain) for kl in (one, every))
    assert odd.kl_more == pytest.approx(0.01)
    assert steady.kl_more == pytest.approx(0.01, rel=0.5)
    assert odd.no_worse
    assert not steady.no_worse
    less = Figures.of(replace(plain, cosine=plain.cosine - 0.01), plain)
    assert not less.no_worse
    assert less.cosine_less == pytest.approx(0.01)
    assert Figures.of(plain, plain).no_worse


@pytest.fixture
def wrong_block(monkeypatch: pytest.MonkeyPatch) -> str:
    """A fault: the codes of one block's last layer come out upside down, though its error says otherwise."""
    original = blockwise.solve

    def solve(method, layer):
        outcome = original(method, layer)
        if layer.name != "decoder.layers.1.mlp.down":
            return outcome
        return replace(outcome, codes=replace(outcome.codes, codes=layer.grid.highest - outcome.codes.codes))

    monkeypatch.setattr(blockwise, "solve", solve)
    return "decoder.layers.1"


def test_a_wrong_block_goes_back_to_rounding_and_says_so(wrong_block: str, tmp_path: Path) -> None:
    folder = calibrate(checked(tmp_path / "codes", samples=24, sequential=False))
    manifest = read_manifest(folder)
    block = manifest["backends"]["onnx"]
    check = block["held_out"]
    assert check["rounded_blocks"] == [wrong_block]
    assert sorted(check["rounded_layers"]) == sorted(
        f"{wrong_block}.{name}" for name in ("attention.out", "attention.qkv", "mlp.down", "mlp.gate_up")
    )
    assert check["calibrated"]["kl"] > 10 * check["rounded"]["kl"], "the fault is one that counts"
    assert Figures(**check["kept"]).no_worse
    assert not Figures(**check["calibrated"]).no_worse
    assert wrong_block in check["reason"]
    assert not set(block["layers"]) & set(check["rounded_layers"])
    assert len(block["layers"]) == 9
    listed = {row["path"] for row in manifest["files"]}
    assert listed == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {
        "manifest.json"
    }
    assert not any(wrong_block in path for path in listed)

    planned = plan(request(tmp_path / "x", precision="int4"))
    weights, assignments = planned.checkpoint.weights, planned.assignments["onnx"]
    assert weights is not None
    stored = StoredCodes(folder, "onnx", weights, assignments)
    plain = RoundToNearest(weights, assignments, GRIDS)
    layer = f"{wrong_block}.mlp.down"
    assert torch.equal(stored.rows(layer, 0, 8).codes, plain.rows(layer, 0, 8).codes)
    other = "decoder.layers.0.mlp.down"
    assert not torch.equal(stored.rows(other, 0, 8).codes, plain.rows(other, 0, 8).codes)
    assert stored.summary()["held_out"] == check
    judge = judge_of(request(tmp_path / "x"), planned.checkpoint, PICTURES)
    score = judge.score(DequantisedWeights(stored.weights, stored, assignments, GRIDS))
    assert score.kl == pytest.approx(check["kept"]["kl"], rel=1e-4), "what is stored is what was measured"


def test_without_the_check_the_fault_stays(wrong_block: str, tmp_path: Path) -> None:
    folder = calibrate(request(tmp_path / "codes", precision="int4", held_out=0))
    block = read_manifest(folder)["backends"]["onnx"]
    assert "held_out" not in block
    assert f"{wrong_block}.mlp.down" in block["layers"]


def test_awq_factors_of_a_block_go_with_it(wrong_block: str, tmp_path: Path) -> None:
    asked = checked(tmp_path / "codes", samples=24, method="awq")
    folder = calibrate(asked)
    assert wrong_block in read_manifest(folder)["backends"]["onnx"]["held_out"]["rounded_blocks"]
    planned = plan(asked)
    assert planned.checkpoint.weights is not None
    stored = StoredCodes(folder, "onnx", planned.checkpoint.weights, planned.assignments["onnx"])
    name = f"{wrong_block}.input_norm.weight"
    assert torch.equal(stored.weights.tensor(name).float(), planned.checkpoint.weights.tensor(name).float())


def test_a_cut_off_check_goes_on_to_the_same_files(
    wrong_block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = calibrate(checked(tmp_path / "whole"))
    scored: list[int] = []
    original = DemoEvaluation.positions

    def positions(self, weights):
        scored.append(1)
        if len(scored) == 4:
            raise KeyboardInterrupt
        return original(self, weights)

    monkeypatch.setattr(DemoEvaluation, "positions", positions)
    with pytest.raises(InterruptedExportError):
        calibrate(checked(tmp_path / "codes"))
    measured = json.loads((tmp_path / "codes.partial" / "onnx" / "held_out.json").read_text(encoding="utf-8"))
    assert len(measured) == 3
    with pytest.raises(UsageError, match="begun by another"):
        calibrate(checked(tmp_path / "codes", resume=True, held_out=5))
    folder = calibrate(checked(tmp_path / "codes", resume=True))
    assert contents(folder) == contents(whole)
    check = read_manifest(folder)["backends"]["onnx"]["held_out"]
    blocks, gone = len(check["one_block_rounded"]), len(check["rounded_blocks"])
    needed = 2 + blocks + min(gone, blocks - 1) - 1
    assert len(scored) == needed + 1 + 1, "what was measured is measured once, but for plain rounding and what was cut off"


def test_what_codes_are_judged_on(other_checkpoint: Path, user_folder: Path, tmp_path: Path) -> None:
    """Lines of the user that no calibration sees, else a demo's questions, else built-in samples."""
    demo, mine = request(tmp_path / "a"), request(tmp_path / "b", data=user_folder, samples=None)
    checkpoint = plan(demo).checkpoint
    assert isinstance(judge_of(demo, checkpoint, 2), DemoEvaluation)
    judge = judge_of(mine, checkpoint, 4)
    assert isinstance(judge, SampleEvaluation)
    assert (judge.source, judge.count, judge.has_task) == (user_folder.name, 2, False)
    other = plan(request(tmp_path / "c", model=str(other_checkpoint), weights=None)).checkpoint
    judge = judge_of(request(tmp_path / "c"), other, 3)
    assert (judge.source, judge.count) == (BUILT_IN, 3)


def test_a_checkpoint_without_the_task_is_checked_on_similarity(
    wrong_block: str, other_checkpoint: Path, user_folder: Path, tmp_path: Path
) -> None:
    asked = CalibrationRequest(
        str(other_checkpoint), "cpu", "gptq", tmp_path / "codes", precision="int4", data=user_folder, held_out=2
    )
    manifest = read_manifest(calibrate(asked))
    check = manifest["backends"]["onnx"]["held_out"]
    assert (check["source"], check["count"]) == (user_folder.name, 2)
    assert manifest["samples"]["count"] == 10
    assert wrong_block in check["rounded_blocks"]


def test_the_plan_says_what_the_check_costs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = ["--model", "minicpm-v", "--weights", "demo", "--target", "cpu", "--dry-run", "-o", str(tmp_path / "x")]
    assert main(flags) == ExitCode.OK
    assert f"3 to 9 passes of {HELD_OUT} samples" in capsys.readouterr().out
    assert main([*flags, "--held-out", "0"]) == ExitCode.OK
    assert "held-out check: none" in capsys.readouterr().out
    assert main([*flags, "--held-out", "-1"]) == ExitCode.USAGE


def test_large_models_are_not_checked_unasked() -> None:
    family = families()["minicpm-v"]
    full = family.spec(family.published_config("", "full"), EmptySource())
    assert count_of(None, full) == 0
    assert count_of(7, full) == 7
