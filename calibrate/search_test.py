"""Mixed bits on the demo checkpoint: budgets kept, gates reached, searches resumed and replayed."""

import json
import re
from pathlib import Path

import pytest

from calibrate.command.cli import main
from calibrate.command.search_cli import room_above
from calibrate.evaluation.evaluate import DemoEvaluation
from calibrate.evaluation.score import Score
from calibrate.request import CalibrationRequest
from calibrate.run import CalibrationPlan, calibrate, plan
from calibrate.search import Gate, Search
from export.backends.registry import backend_named
from export.quantisation.block_length import stored_bytes
from export.quantisation.choice import read_choice, widened
from export.quantisation.spec import Storage
from export.quantisation.stored import StoredCodes, read_manifest
from runtime_py.errors import ExitCode, UsageError

FLAGS = ["--model", "minicpm-v", "--weights", "demo", "--target", "cpu", "--precision", "int4", "-q"]


def request(output: Path, **changes: object) -> CalibrationRequest:
    return CalibrationRequest("minicpm-v", "cpu", "mse-clip", output, weights="demo", samples=2, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> CalibrationPlan:
    return plan(request(tmp_path_factory.mktemp("search")))


@pytest.fixture(scope="module")
def search(planned: CalibrationPlan) -> Search:
    from export.quantisation.codes import RoundToNearest
    from export.quantisation.grids import GRIDS

    evaluation = DemoEvaluation(planned.checkpoint, pictures=6)
    assignments = planned.assignments["onnx"]
    codes = RoundToNearest(evaluation.weights, assignments, GRIDS)
    wider = backend_named("onnx").wider
    return Search(evaluation, evaluation.weights, codes, assignments, planned.wanted["onnx"], wider, {}, lambda: None)


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
    scores = [search.score(search.within(room)).kl for room in (0, 60_000, 10**9)]
    assert scores[2] < scores[1] < scores[0]


def test_a_gate_is_reached_with_the_fewest_upgrades(search: Search) -> None:
    full = Score(None, 1.0, 1.0, 0.0, 1.0)
    least, most = search.score({}).cosine, search.score(search.within(10**9)).cosine
    wanted = (least + most) / 2
    chosen, score = search.until(Gate(cosine=wanted), full)
    assert least < wanted <= score.cosine
    assert 0 < len(chosen) < len(search.layers) + 1
    with pytest.raises(UsageError, match="does not pass"):
        search.until(Gate(cosine=1.1), full)


def test_gates_are_read() -> None:
    assert Gate.parse("cosine=0.995,task=1pt") == Gate(0.995, 1.0)
    assert Gate.parse("task=0.5") == Gate(None, 0.5)
    assert Gate.parse("kl=0.01,cosine=0.9") == Gate(0.9, None, 0.01)
    for text in ("", "cosine", "speed=1", "cosine=high"):
        with pytest.raises(UsageError, match="--gate"):
            Gate.parse(text)
    full, worse = Score(0.9, 1, 1, 0, 1), Score(0.885, 0.99, 0.9, 0, 1)
    assert not Gate(task=1).passes(worse, full)
    assert Gate(task=1.5).passes(worse, full)
    assert not Gate(cosine=0.995).passes(worse, full)
    far = Score(None, 0.999, 0.9, 0.02, 1)
    assert not Gate(kl=0.01).passes(far, full)
    assert Gate(kl=0.03).passes(far, full)


def test_a_choice_is_replayed_by_a_calibration(planned: CalibrationPlan, tmp_path: Path) -> None:
    choice = tmp_path / "choice.json"
    goal = ["--budget", "1.6", "--pictures", "3", "-o", str(choice)]
    assert main(["search", *FLAGS, *goal]) == ExitCode.OK
    storages = read_choice(choice)["backends"]["onnx"]
    assert storages
    assert read_choice(choice)["bytes"] <= 1.6e6
    folder = calibrate(request(tmp_path / "codes", choice=choice))
    assert not set(read_manifest(folder)["backends"]["onnx"]["layers"]) & set(storages)
    assert read_manifest(folder)["choice"] == {"onnx": storages}
    weights, assignments = planned.checkpoint.weights, widened("onnx", planned.assignments["onnx"], storages)
    assert weights is not None
    stored = StoredCodes(folder, "onnx", weights, assignments)
    name = next(iter(storages))
    assert assignments[name].storage in (Storage.INT8, Storage.FP16)
    if assignments[name].grid:
        assert stored.rows(name, 0, 4).codes.max() > 15


def test_the_budget_that_a_refusal_names_is_enough(planned: CalibrationPlan) -> None:
    with pytest.raises(UsageError, match=r"^--budget 0\.5 MB") as told:
        room_above(0.5, planned, "onnx")
    least = re.match(r"at least ([\d.]+) MB", told.value.expected)
    assert least is not None
    assert 0 <= room_above(float(least[1]), planned, "onnx") <= 1000


def test_a_search_resumes_with_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goal = ["--budget", "1.6", "--pictures", "2", "-o", str(tmp_path / "choice.json")]
    counted: list[int] = []
    original = DemoEvaluation.score

    def failing(self, weights):
        counted.append(1)
        if len(counted) == 8:
            raise KeyboardInterrupt
        return original(self, weights)

    monkeypatch.setattr(DemoEvaluation, "score", failing)
    assert main(["search", *FLAGS, *goal]) == ExitCode.INTERRUPTED
    measured = json.loads((tmp_path / "choice.json.partial").read_text())["sensitivity"]
    assert len(measured) == 6

    def watched(self, weights):
        counted.append(1)
        return original(self, weights)

    monkeypatch.setattr(DemoEvaluation, "score", watched)
    assert main(["search", *FLAGS, *goal]) == ExitCode.USAGE
    counted.clear()
    assert main(["search", *FLAGS, *goal, "--resume"]) == ExitCode.OK
    sensitivity = read_choice(tmp_path / "choice.json")["sensitivity"]
    assert len(sensitivity) == 26
    assert {key: sensitivity[key] for key in measured} == measured
    assert len(counted) == 20 + 3, "what was measured is not measured again"
    assert not (tmp_path / "choice.json.partial").exists()


def test_a_checkpoint_without_the_task_is_searched_on_samples(
    other_checkpoint: Path, user_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["search", "--model", str(other_checkpoint), "--target", "cpu", "--precision", "int4", "-q"]
    choice = tmp_path / "choice.json"
    assert main([*flags, "--samples", "4", "--gate", "cosine=0.9,task=1pt", "-o", str(choice)]) == ExitCode.USAGE
    assert "have no known right answers" in capsys.readouterr().err
    assert main([*flags, "--samples", "4", "--budget", "1.45", "-o", str(choice)]) == ExitCode.OK
    stored = read_choice(choice)
    assert stored["measured_on"] == {"source": "built-in samples", "count": 4, "seed": 0}
    assert stored["scores"]["all int4"]["accuracy"] is None
    assert stored["scores"]["full precision"]["kl"] == 0
    all_int4 = stored["scores"]["all int4"]["kl"]
    assert 0 < stored["scores"]["this choice"]["kl"] < all_int4
    mine = ["--calibration-data", str(user_folder)]
    wanted = 0.5 * all_int4
    assert (
        main([*flags, *mine, "--samples", "5", "--gate", f"kl={wanted}", "-o", str(tmp_path / "mine.json")]) == ExitCode.OK
    )
    stored = read_choice(tmp_path / "mine.json")
    assert stored["measured_on"] == {"source": user_folder.name, "count": 5, "seed": 0}
    assert stored["scores"]["this choice"]["kl"] <= wanted < stored["scores"]["all int4"]["kl"]
    assert stored["backends"]["onnx"]


def test_a_task_needs_questions_with_answers(
    user_folder: Path, other_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    goal = ["--gate", "task=1pt", "-o", str(tmp_path / "choice.json")]
    assert main(["search", *FLAGS, "--calibration-data", str(user_folder), *goal]) == ExitCode.USAGE
    assert "leave task out of the gate" in capsys.readouterr().err
    assert main(["compare", "--model", str(other_checkpoint), "--text", str(tmp_path / "none.txt"), "-q"]) == ExitCode.USAGE
    assert "none.txt cannot be read" in capsys.readouterr().err
