"""``--golden`` on the cases of this repository, end to end, and how a case is read."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from parity_tests.check.candidate import open_candidate
from parity_tests.check.rounded_tower import Twin
from parity_tests.cli import main
from parity_tests.conftest import GOLDENS, ExportedPackage
from parity_tests.golden import golden
from parity_tests.golden.case import GoldenCase, classify, fitted, pictures, question, read_case
from parity_tests.golden.golden import compare_case
from parity_tests.golden.side import ask
from parity_tests.judging.compare import compare_recordings
from parity_tests.judging.judge import Judgement, Verdict, judge, judge_comparison
from parity_tests.judging.probes import DRAWN, REQUIRED, base_name, record
from parity_tests.judging.results import Comparison
from parity_tests.judging.standards import Standard
from parity_tests.reference.checkpoint_side import open_checkpoint
from parity_tests.report.json_report import golden_report
from runtime_py.contracts import CONNECTOR, VISION
from runtime_py.errors import UsageError
from runtime_py.generation.session import Limits

TARGETS = [
    ("minicpm-v", "cpu", "fp32"),
    ("minicpm-v", "cpu", "int4"),
    pytest.param("minicpm-v", "cpu", "fp16", marks=pytest.mark.slow),
    pytest.param("minicpm-v", "android", "fp32", marks=pytest.mark.slow),
    pytest.param("minicpm-v", "android", "int4", marks=pytest.mark.slow),
    pytest.param("minicpm-v-2", "cpu", "fp32", marks=pytest.mark.slow),
    pytest.param("minicpm-v-2", "cpu", "fp16", marks=pytest.mark.slow),
    pytest.param("minicpm-v-2", "cpu", "int4", marks=pytest.mark.slow),
    pytest.param("minicpm-v-2", "android", "fp32", marks=pytest.mark.slow),
    pytest.param("minicpm-v-2", "android", "int4", marks=pytest.mark.slow),
]

OTHERS = ("omnilmm-12b", "wemm", "xverse-v", "awaker2.5-vl", "qwen2-vl", "cogvlm2", "cogvlm2-video")


def judged(case: GoldenCase, package: Path, precision: str) -> Judgement:
    candidate = open_candidate(package)
    try:
        return judge(compare_case(case, candidate, open_checkpoint(case.folder), precision))
    finally:
        candidate.backend.close()


def assert_the_tower_rounds_as_told(case: GoldenCase, package: Path) -> None:
    """Tower and connector say what PyTorch says whose tower rounds the same inputs, whether or not a limit asks for it."""
    candidate, checkpoint = open_candidate(package), open_checkpoint(case.folder)
    pictures_asked = 0
    try:
        for prefix, said in ask(case, candidate).recordings.items():
            limits = Limits(candidate.limits.context, candidate.limits.context)
            asked = question(case, prefix, candidate.processor)
            say = partial(record, processor=candidate.processor, limits=limits, question=asked, steps=1)
            expected = Twin(checkpoint, candidate, say).recorded()
            assert expected is not None
            rows = tuple(row for row in compare_recordings(expected, said) if row.stage in (VISION, CONNECTOR))
            compared = Comparison("twin", Standard.STORED_INT8, "", "", rows, prefix)
            probes = judge_comparison(compared, "").probes
            assert [probe.describe() for probe in probes if probe.verdict is not Verdict.PASS] == []
            assert {row.stage for row in rows} == ({VISION, CONNECTOR} if asked.pictures else set())
            pictures_asked += len(asked.pictures)
    finally:
        candidate.backend.close()
    assert pictures_asked, "no prompt of this case has a picture for the tower"


@pytest.mark.parametrize(("name", "target", "precision"), TARGETS)
def test_the_package_passes(exported: ExportedPackage, name: str, target: str, precision: str):
    case = read_case(GOLDENS / name)
    report = golden_report(judged(case, exported(name, target, precision), precision))
    rows = {row["name"]: row for row in report["probes"]}
    assert report["verdict"] == "pass", report["first_failure"]
    assert set(case.outputs) <= set(rows)
    assert {row["verdict"] for row in rows.values()} == {"pass"}
    assert {base_name(row) for row in rows} >= {*REQUIRED} - {DRAWN}, "what no golden asks for is left out"
    assert report["first_failure"] is None
    if precision == "fp32":
        assert rows["prefill_logits"]["tolerance"] == 1e-4
        assert rows["connector"]["tolerance"] == 2e-5
        assert rows["greedy_ids"]["max_abs_error"] == 0


@pytest.mark.parametrize(
    ("target", "precision"),
    [
        ("cpu", "fp32"),
        pytest.param("cpu", "int4", marks=pytest.mark.slow),
        pytest.param("android", "fp32", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", OTHERS)
def test_every_family_passes(exported: ExportedPackage, name: str, target: str, precision: str):
    case = read_case(GOLDENS / name)
    package = exported(name, target, precision)
    report = golden_report(judged(case, package, precision))
    assert report["verdict"] == "pass", report["first_failure"]
    if (target, precision) == ("cpu", "int4"):
        assert_the_tower_rounds_as_told(case, package)
    rows = {row["name"]: row for row in report["probes"]}
    tokens = [row for probe, row in rows.items() if probe.endswith("greedy_ids")]
    assert tokens, "the answer was not compared"
    if precision == "fp32":
        assert {row["max_abs_error"] for row in tokens} == {0}


def test_a_clip_is_one_picture(tmp_path: Path):
    frames = np.zeros((3, 4, 5, 3), np.uint8)
    case = case_of({"frames": frames, "input_ids": np.zeros((1, 4), np.int64)}, {"vision": frames}, tmp_path)
    assert [picture.shape for picture in pictures(case)] == [(3, 4, 5, 3)]


@pytest.mark.parametrize(("array", "change"), [("vision", 1e-3), ("step_logits", 1e-3), ("greedy_ids", 1)])
def test_another_array_than_the_package_makes_fails(exported: ExportedPackage, array: str, change: float):
    case = read_case(GOLDENS / "minicpm-v")
    wrong = case.outputs[array].copy()
    wrong.reshape(-1)[-1] += np.asarray(change, wrong.dtype)
    outputs = {**case.outputs, array: wrong}
    result = judged(
        GoldenCase(case.folder, case.inputs, outputs, case.prefixes), exported("minicpm-v", "cpu", "fp32"), "fp32"
    )
    assert result.verdict is Verdict.FAIL
    assert f"golden: {array} " in result.first_failure or array == "greedy_ids"
    rows = {row["name"]: row["verdict"] for row in golden_report(result)["probes"]}
    assert rows[array] == "fail"


def test_the_command_writes_the_table_and_exits_with_5_on_a_failure(
    exported: ExportedPackage, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    package = exported("minicpm-v", "cpu", "fp32")
    folder = Path(shutil.copytree(GOLDENS / "minicpm-v", tmp_path / "case"))
    arrays = dict(read_case(folder).outputs)
    arrays["connector"] = arrays["connector"] + 1e-3
    np.savez(folder / "outputs.npz", allow_pickle=False, **arrays)
    monkeypatch.setattr("parity_tests.golden.golden.export_case", lambda *_, **__: package)
    monkeypatch.setattr("parity_tests.golden.golden.shutil.rmtree", lambda *_, **__: None)
    table, reports = tmp_path / "table.json", tmp_path / "reports"
    flags = ["--target", "cpu", "--precision", "fp32", "--json-file", str(table), "--report-dir", str(reports)]
    assert main(["--golden", str(folder), *flags]) == 5
    value = json.loads(table.read_text())
    assert list(value)[:2] == ["case", "family"]
    assert (value["case"], value["target"], value["precision"], value["verdict"]) == ("case", "cpu", "fp32", "fail")
    assert value["first_failure"].startswith("golden: connector (stage connector")
    assert "verdict: fail" in capsys.readouterr().out
    assert (reports / "report.md").read_text().startswith("# FAIL: golden: connector")
    assert main(["judge", str(reports / "run.json")]) == 5
    mine = tmp_path / "mine.json"
    mine.write_text('{"golden-fp32": {"features": {"max_abs": 0.01}, "embeds": {"max_abs": 1}}}')
    assert main(["judge", str(reports / "run.json"), "--thresholds", str(mine)]) == 0


def test_a_folder_that_is_no_case_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--golden", str(tmp_path), "--target", "cpu", "--precision", "fp32"]) == 2
    assert "is no golden case" in capsys.readouterr().err
    assert main(["--golden", str(GOLDENS / "minicpm-v")]) == 2


def case_of(inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], tmp_path: Path) -> GoldenCase:
    np.savez(tmp_path / "inputs.npz", allow_pickle=False, **inputs)
    np.savez(tmp_path / "outputs.npz", allow_pickle=False, **outputs)
    return read_case(tmp_path)


def test_names_are_told_apart(tmp_path: Path):
    ids = np.zeros((1, 4), np.int64)
    names = ("p0_vision", "p1_greedy_ids", "text_logits", "p0_prefill_logits_last8", "vision_3", "gates", "vision_pos_embed")
    inputs = {"p0_input_ids": ids, "p1_input_ids": ids, "text_input_ids": ids, "image_0": ids, "input_ids_expanded": ids}
    case = case_of(inputs, {name: ids for name in names}, tmp_path)
    assert case.prefixes == ("p0_", "p1_", "text_")
    kinds = {name: classify(case, name) for name in names}
    assert (kinds["p0_vision"].prefix, kinds["p0_vision"].probe) == ("p0_", "vision")
    assert kinds["p1_greedy_ids"].probe == "greedy_ids"
    assert (kinds["text_logits"].prefix, kinds["text_logits"].probe) == ("text_", "prefill_logits")
    assert (kinds["p0_prefill_logits_last8"].probe, kinds["p0_prefill_logits_last8"].last_rows) == ("prefill_logits", 8)
    assert (kinds["vision_3"].probe, kinds["vision_3"].piece) == ("vision", 3)
    assert kinds["gates"].probe == kinds["vision_pos_embed"].probe == ""


def test_a_prompt_takes_the_pictures_it_has_placeholders_for(tmp_path: Path):
    real = read_case(GOLDENS / "minicpm-v")
    picture, ids = real.inputs["image"], real.inputs["input_ids"]
    text = ids[:, [0, -1]]
    inputs = {"a_input_ids": ids, "b_input_ids": text, "image_0": picture, "image_1": picture}
    case = case_of(inputs, {"a_greedy_ids": ids}, tmp_path)
    processor = open_checkpoint(GOLDENS / "minicpm-v").processor()
    assert len(question(case, "a_", processor).pictures) == 1
    assert len(question(case, "b_", processor).pictures) == 0
    broken = ids.copy()
    broken[ids == 102] = 0
    with pytest.raises(UsageError):
        question(case_of({**inputs, "a_input_ids": broken}, {}, tmp_path), "a_", processor)


def test_a_prompt_takes_any_pictures_that_fit_it_and_its_own_before_shared_ones(tmp_path: Path):
    real, checkpoint = read_case(GOLDENS / "awaker2.5-vl"), open_checkpoint(GOLDENS / "awaker2.5-vl")
    processor, pad = checkpoint.processor(), checkpoint.spec.runtime["prompt"]["marks"]["<|image_pad|>"]
    ids = {prefix: real.inputs[prefix + "input_ids"] for prefix in ("p0_", "p1_")}
    rows = {prefix: int((tokens == pad).sum()) for prefix, tokens in ids.items()}
    first = int(np.flatnonzero(ids["p0_"][0] == pad)[0])
    only_second = np.concatenate([ids["p0_"][:, :first], ids["p0_"][:, first + 2 * rows["p0_"] - rows["p1_"] :]], axis=1)
    shared = {"image_0": real.inputs["image_0"], "image_1": real.inputs["image_1"]}
    case = case_of({"p3_input_ids": only_second, **shared}, {}, tmp_path)
    (chosen,) = question(case, "p3_", processor).pictures
    assert chosen.shape == real.inputs["image_1"].shape
    own = {"p0_input_ids": ids["p0_"], "p0_image": real.inputs["image_0"], "image_0": real.inputs["image_1"]}
    (chosen,) = question(case_of(own, {}, tmp_path), "p0_", processor).pictures
    assert np.array_equal(chosen, real.inputs["image_0"])
    clip = {"p0_input_ids": ids["p0_"], "frames": real.inputs["image_0"][None], **shared}
    assert len(pictures(case_of(clip, {}, tmp_path), "p0_")) == 3


def test_stage_arrays_without_a_prefix_belong_to_the_prompt_with_all_pictures(tmp_path: Path):
    short, long = np.zeros((1, 4), np.int64), np.zeros((1, 9), np.int64)
    names = ("vision", "connector_1", "p0_prefill_logits_last", "p1_logits_last3")
    case = case_of({"p0_input_ids": short, "p1_input_ids": long}, {name: long for name in names}, tmp_path)
    kinds = {name: classify(case, name) for name in names}
    assert [kinds[name].prefix for name in names] == ["p1_", "p1_", "p0_", "p1_"]
    assert [kinds[name].last_rows for name in names] == [None, None, 1, 3]
    plain = case_of({"input_ids": short, "p1_input_ids": long}, {"vision": long}, tmp_path)
    assert classify(plain, "vision").prefix == ""


def test_a_case_longer_than_its_model_was_trained_for_gets_the_context_it_needs(tmp_path: Path):
    folder = Path(shutil.copytree(GOLDENS / "omnilmm-12b", tmp_path / "case"))
    assert golden.context_of(folder, "cpu") is None
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 30}))
    assert golden.context_of(folder, "cpu") == 28 + 12


def test_pieces_are_fitted_to_how_the_golden_stores_them():
    pieces = [np.arange(6.0).reshape(1, 2, 3), np.arange(6.0, 12).reshape(1, 2, 3)]
    assert fitted(pieces, np.zeros((2, 2, 3))).shape == (2, 2, 3)
    assert np.array_equal(fitted(pieces, np.zeros((4, 3))).ravel(), np.arange(12))
    uneven = [pieces[0], np.arange(6.0, 9).reshape(1, 1, 3)]
    assert np.array_equal(fitted(uneven, np.zeros((3, 3))).ravel(), np.arange(9))
    assert fitted(uneven, np.zeros((4, 3))).shape == (3, 3)
