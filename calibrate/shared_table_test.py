"""A head that is the embedding: where a package stores the matrix once, both have the head's calibrated codes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from calibrate.blockwise import PartlyQuantised
from calibrate.request import CalibrationRequest
from calibrate.run import calibrate, plan
from export.__main__ import main as export
from export.package.manifest import assignment_rows, assignments_of
from export.quantisation.choice import widened
from export.quantisation.codes import DequantisedWeights
from export.quantisation.grids import GRIDS
from export.quantisation.spec import Storage
from export.quantisation.stored import StoredCodes
from export.source.hub import DEMO_FOLDER
from runtime_py.errors import ExitCode

TABLE, HEAD = "embed_tokens.table", "decoder.head"


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> CalibrationRequest:
    """The MiniCPM-V demo with its embedding as its head, for a phone."""
    folder = tmp_path_factory.mktemp("tied") / "minicpm-v"
    shutil.copytree(DEMO_FOLDER / "minicpm-v", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}), encoding="utf-8")
    tensors = load_file(folder / "model.safetensors")
    del tensors["llm.lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return CalibrationRequest(str(folder), "android", "gptq", folder.with_name("codes"), samples=8, held_out=0)


@pytest.fixture(scope="module")
def folder(asked: CalibrationRequest) -> Path:
    return calibrate(asked)


def test_table_and_head_read_the_same_codes(asked: CalibrationRequest, folder: Path) -> None:
    planned = plan(asked)
    weights, assignments = planned.checkpoint.weights, planned.assignments["mlc"]
    assert weights is not None
    stored = StoredCodes(folder, "mlc", weights, assignments)
    table, head = (stored.rows(name, 0, 100) for name in (TABLE, HEAD))
    assert torch.equal(table.codes, head.codes) and torch.equal(table.scales, head.scales)
    rounded = GRIDS[assignments[HEAD].grid].quantise(weights.rows(f"{HEAD}.weight", 0, 100).float())
    assert not torch.equal(head.codes, rounded.codes), "the head was calibrated"
    read = DequantisedWeights(stored.weights, stored, assignments, GRIDS)
    assert torch.equal(read.tensor(f"{TABLE}.weight"), read.tensor(f"{HEAD}.weight"))


def test_samples_look_up_what_the_package_will_hold(asked: CalibrationRequest, folder: Path) -> None:
    planned = plan(asked)
    weights, assignments = planned.checkpoint.weights, planned.assignments["mlc"]
    assert weights is not None
    state = PartlyQuantised(weights, assignments, frozenset(planned.wanted["mlc"]))
    before = state.tensor(f"{TABLE}.weight")
    state.files[HEAD] = folder / "mlc" / f"{HEAD}.safetensors"
    after = state.tensor(f"{TABLE}.weight")
    assert torch.equal(after, state.tensor(f"{HEAD}.weight"))
    assert not torch.equal(after, before)


def test_a_wider_head_is_a_wider_table(asked: CalibrationRequest) -> None:
    assignments = plan(asked).assignments["mlc"]
    chosen = widened("mlc", assignments, {HEAD: "fp16"})
    assert (chosen[TABLE].storage, chosen[TABLE].grid) == (chosen[HEAD].storage, chosen[HEAD].grid) == (Storage.FP16, "")
    assert all(chosen[name] == assignments[name] for name in assignments if name not in (TABLE, HEAD))


def test_the_manifest_tells_the_parity_check(asked: CalibrationRequest) -> None:
    planned = plan(asked)
    rows = assignment_rows(planned.assignments["mlc"])
    assert {name: row["shares"] for name, row in rows.items() if "shares" in row} == {TABLE: HEAD}
    assert assignments_of(planned.checkpoint.spec, rows) == planned.assignments["mlc"]


def test_files_that_hold_both_share_nothing(asked: CalibrationRequest) -> None:
    planned = plan(replace(asked, target="cpu", precision="int4"))
    assert not any(assignment.shares for assignment in planned.assignments["onnx"].values())


@pytest.mark.slow
def test_a_package_with_them_passes_its_check(asked: CalibrationRequest, folder: Path, tmp_path: Path) -> None:
    given = ["--model", asked.model, "--target", "android", "--codes", str(folder), "-o", str(tmp_path / "package"), "-q"]
    assert export(given) == ExitCode.OK
