"""Mixed bits on the demo checkpoint: budgets kept, gates reached, searches resumed and replayed."""

import json
from pathlib import Path

import pytest

from calibrate.choice import WIDER, read_choice, widened
from calibrate.cli import main
from calibrate.evaluate import Evaluation, Score
from calibrate.request import CalibrationRequest
from calibrate.run import CalibrationPlan, calibrate, plan
from calibrate.search import Gate, Search, stored_bytes
from calibrate.spec import Form
from calibrate.stored import StoredCodes, read_manifest
from runtime_py.errors import ExitCode, UsageError

FLAGS = ["--model", "minicpm-v", "--weights", "demo", "--target", "cpu", "--precision", "int4", "-q"]


def request(output: Path, **changes: object) -> CalibrationRequest:
    return CalibrationRequest("minicpm-v", "cpu", "rtn", output, weights="demo", samples=2, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> CalibrationPlan:
    return plan(request(tmp_path_factory.mktemp("search")))


@pytest.fixture(scope="module")
def search(planned: CalibrationPlan) -> Search:
    from calibrate.codes import RoundToNearest
    from calibrate.grids import GRIDS

    evaluation = Evaluation(planned.checkpoint, pictures=6, similar=12)
    assignments = planned.assignments["onnx"]
    codes = RoundToNearest(evaluation.weights, assignments, GRIDS)
    return Search(
        evaluation, evaluation.weights, codes, assignments, planned.wanted["onnx"], WIDER["onnx"], {}, lambda: None
    )


def test_sensitivities_are_of_one_layer_alone(search: Search) -> None:
    upgrades = search.upgrades()
    assert len(upgrades) == 2 * len(search.layers)
    four = [value for key, value in search.known.items() if key.endswith("int4")]
    eight = [search.known[key.replace("int4", "int8")] for key in search.known if key.endswith("int4")]
    assert min(four) > 0
    assert sum(eight) < 0.05 * sum(four), "eight bits cost far less"


@pytest.mark.parametrize("room", [0, 20_000, 100_000, 10**9])
def test_a_budget_is_kept_and_used(search: Search, room: int) -> None:
    chosen = search.within(room)
    before = search.assignments
    after = widened("onnx", before, chosen)
    added = sum(stored_bytes(after[name]) - stored_bytes(before[name]) for name in chosen)
    assert added <= room
    assert bool(chosen) == (room > 0)
    if room == 10**9:
        assert chosen == dict.fromkeys(search.layers, "fp16")


def test_more_room_never_costs_similarity_much(search: Search) -> None:
    scores = [search.score(search.within(room), task=False).kl for room in (0, 60_000, 10**9)]
    assert scores[2] < scores[1] < scores[0]


def test_a_gate_is_reached_with_the_fewest_upgrades(search: Search) -> None:
    full = Score(None, 1.0, 1.0, 0.0, 1.0)
    least, most = search.score({}, task=False).cosine, search.score(search.within(10**9), task=False).cosine
    wanted = (least + most) / 2
    chosen, score = search.until(Gate(cosine=wanted), full)
    assert least < wanted <= score.cosine
    assert 0 < len(chosen) < len(search.layers) + 1
    with pytest.raises(UsageError, match="does not pass"):
        search.until(Gate(cosine=1.1), full)


def test_gates_are_read() -> None:
    assert Gate.parse("cosine=0.995,task=1pt") == Gate(0.995, 1.0)
    assert Gate.parse("task=0.5") == Gate(None, 0.5)
    for text in ("", "cosine", "speed=1", "cosine=high"):
        with pytest.raises(UsageError, match="--gate"):
            Gate.parse(text)
    full, worse = Score(0.9, 1, 1, 0, 1), Score(0.885, 0.99, 0.9, 0, 1)
    assert not Gate(task=1).passes(worse, full)
    assert Gate(task=1.5).passes(worse, full)
    assert not Gate(cosine=0.995).passes(worse, full)


def test_a_choice_is_replayed_by_a_calibration(planned: CalibrationPlan, tmp_path: Path) -> None:
    choice = tmp_path / "choice.json"
    goal = ["--budget", "1.45", "--pictures", "3", "-o", str(choice)]
    assert main(["search", *FLAGS, *goal]) == ExitCode.OK
    forms = read_choice(choice)["backends"]["onnx"]
    assert forms
    assert read_choice(choice)["bytes"] <= 1.45e6
    folder = calibrate(request(tmp_path / "codes", choice=choice))
    assert not set(read_manifest(folder)["backends"]["onnx"]["layers"]) & set(forms)
    assert read_manifest(folder)["choice"] == {"onnx": forms}
    weights, assignments = planned.checkpoint.weights, widened("onnx", planned.assignments["onnx"], forms)
    assert weights is not None
    stored = StoredCodes(folder, "onnx", weights, assignments)
    name = next(iter(forms))
    assert assignments[name].form in (Form.INT8, Form.FP16)
    if assignments[name].grid:
        assert stored.rows(name, 0, 4).codes.max() > 15


def test_a_search_resumes_with_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goal = ["--budget", "1.45", "--pictures", "2", "-o", str(tmp_path / "choice.json")]
    counted: list[int] = []
    original = Evaluation.score

    def failing(self, weights, task=True):  # type: ignore[no-untyped-def]
        counted.append(1)
        if len(counted) == 8:
            raise KeyboardInterrupt
        return original(self, weights, task)

    monkeypatch.setattr(Evaluation, "score", failing)
    assert main(["search", *FLAGS, *goal]) == ExitCode.INTERRUPTED
    measured = json.loads((tmp_path / "choice.json.partial").read_text())["sensitivity"]
    assert len(measured) == 6

    def watched(self, weights, task=True):  # type: ignore[no-untyped-def]
        counted.append(1)
        return original(self, weights, task)

    monkeypatch.setattr(Evaluation, "score", watched)
    assert main(["search", *FLAGS, *goal]) == ExitCode.USAGE
    counted.clear()
    assert main(["search", *FLAGS, *goal, "--resume"]) == ExitCode.OK
    found = read_choice(tmp_path / "choice.json")["sensitivity"]
    assert len(found) == 26
    assert {key: found[key] for key in measured} == measured
    assert len(counted) == 20 + 3, "what was measured is not measured again"
    assert not (tmp_path / "choice.json.partial").exists()
