"""Files of tuned blocks: the same after a kill, none left of blocks that went back to plain rounding."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.evaluation.evaluate_samples import judge_of
from calibrate.evaluation.held_out import HeldOutCheck
from calibrate.run import calibrate, plan
from calibrate.run_test import contents
from calibrate.tuning import scale_tuning, tuned_blocks
from calibrate.tuning.scale_tuning_test import stored_of, tuned
from export.package.journal import Journal
from export.quantisation.codes import DequantisedWeights
from export.quantisation.grids import GRIDS
from runtime_py.errors import InterruptedExportError, UsageError


def kill(patch: pytest.MonkeyPatch, owner: object, name: str, last: int) -> list[int]:
    """The process is killed when a function of ``owner`` is called for the ``last`` time; gives one item for each call."""
    original, calls = getattr(owner, name), list[int]()

    def called(*given: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == last:
            raise KeyboardInterrupt
        return original(*given, **named)

    patch.setattr(owner, name, called)
    return calls


def test_a_cut_off_tuning_resumes_to_identical_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off with one of the tuned files written, then in the check, then with the files gone that tuned ones replace."""
    asked = tuned(tmp_path / "codes", samples=3, held_out=2)
    folder = calibrate(replace(asked, output=tmp_path / "whole"))
    whole = contents(folder)
    again = replace(asked, resume=True)
    with monkeypatch.context() as patch:
        kill(patch, tuned_blocks, "write_block", 2)
        with pytest.raises(InterruptedExportError):
            calibrate(asked)
    partial = tmp_path / "codes.partial"
    assert len(list((partial / "onnx" / "tuned").iterdir())) == 2
    with pytest.raises(UsageError, match="tune_scales: 3 then, 5 now"):
        calibrate(replace(again, tune_scales=5))
    with pytest.raises(UsageError, match="begun by another"):
        calibrate(replace(again, tune_scales=0))
    with monkeypatch.context() as patch:
        kill(patch, HeldOutCheck, "_save", 1)
        with pytest.raises(InterruptedExportError):
            calibrate(again)
    with monkeypatch.context() as patch:
        trained = kill(patch, scale_tuning._Student, "train", 0)
        kill(patch, Journal, "remove", 1)
        with pytest.raises(InterruptedExportError):
            calibrate(again)
        assert not trained, "tuned scales are taken from the disk"
    assert not (partial / "onnx" / "decoder.layers.0.safetensors").exists()
    assert contents(calibrate(again)) == whole

    stored, planned = stored_of(folder, asked), plan(asked)
    summary = stored.summary()
    assert not summary["held_out"]["rounded_blocks"]
    assert all(layer.file.parent.name == "tuned" for layer in stored.layers.values())
    judge = judge_of(asked, planned.checkpoint, 2)
    score = judge.score(DequantisedWeights(stored.weights, stored, planned.assignments["onnx"], GRIDS))
    assert score.kl == pytest.approx(summary["held_out"]["kept"]["kl"], rel=1e-4), "the check judges tuned codes"


@pytest.mark.parametrize(
    "gone", [["decoder.layers.1"], ["decoder.layers.0", "decoder.layers.1", "decoder.layers.2", "decoder.head"]]
)
def test_tuned_blocks_that_go_back_to_rounding_leave_no_file(
    gone: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibrate.evaluation.held_out.returned", lambda blocks, measure: gone)
    asked = tuned(tmp_path / "codes", samples=2, tune_scales=2, held_out=1)
    folder = calibrate(asked)
    stored = stored_of(folder, asked)
    left = {"decoder.layers.0", "decoder.layers.1", "decoder.layers.2", "decoder.head"} - set(gone)
    assert {file.stem for file in folder.rglob("*.safetensors")} == left
    assert {layer.file.stem for layer in stored.layers.values()} == left
    assert (folder / "onnx" / "tuned").exists() == bool(left)
