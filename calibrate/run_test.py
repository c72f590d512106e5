"""A calibration of the demo checkpoint from request to folder: resumed, replayed, refused."""

import json
import logging
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from calibrate.command.cli import main
from calibrate.conftest import decoder_call, run_decoder
from calibrate.request import CalibrationRequest
from calibrate.run import calibrate, plan
from export.quantisation.codes import DequantisedWeights
from export.quantisation.grids import GRIDS
from export.quantisation.overlay import OverlaidWeights
from export.quantisation.stored import StoredCodes, read_manifest
from runtime_py.errors import ExitCode, InterruptedExportError, PackageError, UsageError


def request(output: Path, **changes: object) -> CalibrationRequest:
    given = {
        "model": "minicpm-v",
        "weights": "demo",
        "target": "cpu",
        "method": "gptq",
        "samples": 4,
        "held_out": 0,
        **changes,
    }
    return CalibrationRequest(output=output, **given)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrate(request(tmp_path_factory.mktemp("calibration") / "codes"))


def test_a_cut_off_run_resumes_to_identical_files(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calibrate import blockwise

    solved = []

    def interrupted(method, layer):
        solved.append(layer.name)
        if layer.name == "decoder.layers.1.mlp.down":
            raise KeyboardInterrupt
        return original(method, layer)

    original = blockwise.solve
    monkeypatch.setattr(blockwise, "solve", interrupted)
    with pytest.raises(InterruptedExportError):
        calibrate(request(tmp_path / "codes"))
    assert not (tmp_path / "codes").exists()

    def watched(method, layer):
        solved.append(layer.name)
        return original(method, layer)

    monkeypatch.setattr(blockwise, "solve", watched)
    solved.clear()
    with pytest.raises(UsageError, match="--resume"):
        calibrate(request(tmp_path / "codes"))
    folder = calibrate(request(tmp_path / "codes", resume=True))
    assert "decoder.layers.0.mlp.down" not in solved
    assert "decoder.layers.1.mlp.down" in solved
    assert contents(folder) == contents(made)


@pytest.mark.parametrize("change", [{"seed": 5}, {"samples": 5}, {"method": "mse-clip"}, {"text_only": True}])
def test_another_request_does_not_resume(change: dict[str, object], made: Path, tmp_path: Path) -> None:
    partial = tmp_path / "codes.partial"
    shutil.copytree(made, partial)
    from calibrate.record import fingerprint
    from calibrate.samples.prompts import prompts_of
    from export.package.journal import Journal

    asked = request(tmp_path / "codes")
    checkpoint = plan(asked).checkpoint
    Journal(partial, fingerprint(asked, checkpoint, prompts_of(asked, checkpoint)[1])).begin()
    with pytest.raises(UsageError, match="begun by another"):
        calibrate(request(tmp_path / "codes", resume=True, **change))


@pytest.mark.parametrize("method", ["mse-clip", "gptq", "awq", "awq-gptq", "hqq", "sign-rounding"])
def test_stored_codes_beat_rounding_on_the_logits(method: str, tmp_path: Path) -> None:
    folder = calibrate(request(tmp_path / "codes", method=method, samples=8, sequential=False, held_out=0))
    report = read_manifest(folder)["backends"]["onnx"]["layers"]
    assert len(report) == 13
    for name, row in report.items():
        assert row["error"] <= row["rounded_error"], name
    planned = plan(request(tmp_path / "other"))
    weights, assignments = planned.checkpoint.weights, planned.assignments["onnx"]
    assert weights is not None
    stored = StoredCodes(folder, "onnx", weights, assignments)
    spec = planned.checkpoint.spec
    call = decoder_call(spec)
    call["inputs_embeds"] = call["inputs_embeds"] * 0.5
    wanted = run_decoder(spec, weights, call)
    actual = run_decoder(spec, DequantisedWeights(stored.weights, stored, assignments, GRIDS), call)
    similarity = float(torch.nn.functional.cosine_similarity(wanted.flatten(), actual.flatten(), dim=0))
    assert similarity > 0.97


def test_an_overlay_alone_changes_nothing(tmp_path: Path) -> None:
    folder = calibrate(request(tmp_path / "codes", method="awq", target="android"))
    planned = plan(request(tmp_path / "other", target="android"))
    weights = planned.checkpoint.weights
    assert weights is not None
    stored = StoredCodes(folder, "mlc", weights, planned.assignments["mlc"])
    assert stored.weights is not weights, "AWQ found no factor at all"
    call = decoder_call(planned.checkpoint.spec)
    wanted, actual = (run_decoder(planned.checkpoint.spec, source, call) for source in (weights, stored.weights))
    assert float((wanted - actual).abs().max()) < 1e-4 * float(wanted.abs().max())
    assert isinstance(stored.weights, OverlaidWeights)
    factors = stored.weights.overlay.rows.values()
    assert max(float((factor - 1).abs().max()) for factor in factors) > 0.05


@pytest.mark.parametrize("model", ["awaker2.5-vl", "cogvlm2"])
def test_factors_shared_by_several_layers_are_stored(model: str, tmp_path: Path) -> None:
    """Adapters and experts read one activation, so that one vector of factors belongs to several matrices."""
    asked = request(tmp_path / "codes", model=model, method="awq", samples=3, held_out=0, precision="int4")
    folder = calibrate(asked)
    planned = plan(asked)
    assert planned.checkpoint.weights is not None
    stored = StoredCodes(folder, "onnx", planned.checkpoint.weights, planned.assignments["onnx"])
    assert isinstance(stored.weights, OverlaidWeights)
    columns = stored.weights.overlay.columns
    shared = [(a, b) for a in columns for b in columns if a < b and torch.equal(columns[a], columns[b])]
    assert shared
    call = decoder_call(planned.checkpoint.spec)
    spec, weights = planned.checkpoint.spec, planned.checkpoint.weights
    wanted, actual = (run_decoder(spec, source, call) for source in (weights, stored.weights))
    assert float((wanted - actual).abs().max()) < 1e-4 * float(wanted.abs().max())


def test_zero_points_and_a_wider_head_are_planned_and_stored(tmp_path: Path) -> None:
    asked = request(
        tmp_path / "codes", samples=2, precision="int4", asymmetric=True, block_size=16, head_precision="int8",
        embed_precision="fp16",
    )  # fmt: skip
    planned = plan(asked)
    weights = planned.checkpoint.weights
    assert weights is not None
    assignments = planned.assignments["onnx"]
    assert assignments["decoder.head"].grid == "ort_int8_b16"
    assert str(assignments["embed_tokens.table"].storage) == "fp16"
    assert "decoder.head" not in planned.wanted["onnx"]
    stored = StoredCodes(calibrate(asked), "onnx", weights, assignments)
    layer = "decoder.layers.0.mlp.down"
    codes = stored.rows(layer, 0, 8)
    assert codes.zero_points is not None
    assert codes.scales.shape == codes.zero_points.shape == (8, assignments[layer].layer.columns // 16)
    assert len(codes.zero_points.unique()) > 2
    weight = weights.rows(f"{layer}.weight", 0, 8)
    assert torch.nn.functional.cosine_similarity(GRIDS["ort_int4_asym_b16"].dequantise(codes), weight.float()).min() > 0.98
    with pytest.raises(UsageError, match="ort_int4_asym_b16"):
        StoredCodes(tmp_path / "codes", "onnx", weights, plan(request(tmp_path / "x")).assignments["onnx"])


def test_a_choice_of_bits_and_its_gate_reach_the_manifest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = "decoder.layers.1.mlp.down"
    goal = {"cosine": 0.99, "task": 1.0}
    choice = {
        "kind": "bit choice",
        "schema": 1,
        "backends": {"onnx": {layer: "int8"}},
        "goal": goal,
        "scores": {},
        "bytes": 5,
        "source": "demo/cogvlm2",
    }
    path = tmp_path / "choice.json"
    path.write_text(json.dumps(choice), encoding="utf-8")
    asked = request(tmp_path / "codes", samples=2, precision="int4", choice=path)
    planned = plan(asked)
    weights = planned.checkpoint.weights
    assert weights is not None
    with caplog.at_level(logging.INFO, "edgeproof"):
        stored = StoredCodes(calibrate(asked), "onnx", weights, planned.assignments["onnx"])
    told = "note: the choice of bits was measured on 'demo/cogvlm2', not on demo/minicpm-v"
    assert sum(message.startswith(told) for message in caplog.messages) == 1
    flags = ["--model", "minicpm-v", "--weights", "demo", "--target", "cpu", "-q", "--choice", str(path), "--dry-run"]
    assert main([*flags, "-o", str(tmp_path / "x")]) == ExitCode.OK
    assert told in capsys.readouterr().out
    summary = stored.summary()
    assert summary["search"]["goal"] == goal and summary["search"]["source"] == "demo/cogvlm2"
    assert layer not in stored.layers
    again = {"kind": "bit choice", "schema": 1, "backends": summary["choice"], **summary["search"]}
    path.write_text(json.dumps(again), encoding="utf-8")
    replayed = calibrate(request(tmp_path / "again", samples=2, precision="int4", choice=path))
    assert contents(replayed) == contents(tmp_path / "codes")


def test_rows_of_stored_codes(made: Path, tmp_path: Path) -> None:
    planned = plan(request(tmp_path / "other"))
    assert planned.checkpoint.weights is not None
    stored = StoredCodes(made, "onnx", planned.checkpoint.weights, planned.assignments["onnx"])
    whole, part = stored.rows("decoder.head", 0, 661), stored.rows("decoder.head", 100, 130)
    assert torch.equal(whole.codes[100:130], part.codes)
    assert torch.equal(whole.scales[100:130], part.scales)
    assert stored.rows("embed_tokens.table", 0, 3).codes.shape == (3, 128), "layers without stored codes are rounded"


def test_codes_for_half_precision_serve_a_phone_that_computes_in_float32(tmp_path: Path) -> None:
    folder = calibrate(request(tmp_path / "codes", target="android", method="mse-clip", samples=1))
    planned = plan(request(tmp_path / "other", target="android", precision="q4f32_1"))
    weights, assignments = planned.checkpoint.weights, planned.assignments["mlc"]
    assert weights is not None
    assert {a.grid for a in assignments.values() if a.grid} == {"q4f32_1"}
    own = StoredCodes(folder, "mlc", weights, plan(request(tmp_path / "own", target="android")).assignments["mlc"])
    served = StoredCodes(folder, "mlc", weights, assignments)
    layer = "decoder.layers.0.mlp.down"
    half, wide = own.rows(layer, 0, 16), served.rows(layer, 0, 16)
    assert torch.equal(half.codes, wide.codes)
    assert (half.scales.dtype, wide.scales.dtype) == (torch.float16, torch.float32)
    assert torch.equal(wide.scales, half.scales.to(torch.bfloat16).float()), "as q4f32_1's file holds them"
    assert not torch.equal(served.rows("embed_tokens.table", 0, 8).scales, own.rows("embed_tokens.table", 0, 8).scales)


def test_codes_for_other_shapes_or_grids_are_refused(made: Path, tmp_path: Path) -> None:
    planned = plan(request(tmp_path / "other", block_size=64))
    weights = planned.checkpoint.weights
    assert weights is not None
    with pytest.raises(UsageError, match=r"13 layer.*\n(.*\n)*.*ort_int4_b32.*ort_int4_b64"):
        StoredCodes(made, "onnx", weights, planned.assignments["onnx"])
    with pytest.raises(UsageError, match="no codes for mlc"):
        StoredCodes(made, "mlc", weights, planned.assignments["onnx"])
    with pytest.raises(UsageError, match="no finished calibration"):
        StoredCodes(tmp_path, "onnx", weights, planned.assignments["onnx"])
    damaged = tmp_path / "damaged"
    shutil.copytree(made, damaged)
    file = next(damaged.rglob("decoder.layers.1.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(PackageError, match=r"decoder\.layers\.1"):
        StoredCodes(damaged, "onnx", weights, plan(request(tmp_path / "other")).assignments["onnx"])


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "minicpm-v", "--weights", "demo", "--target", "cpu", "-q"]
    assert main([*flags, "--method", "mse-clip", "--samples", "2", "-o", str(tmp_path / "codes"), "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["samples"]["count"] == 2
    assert main([*flags, "--method", "best", "-o", str(tmp_path / "x")]) == ExitCode.USAGE
    assert main([*flags, "--precision", "fp16", "-o", str(tmp_path / "x")]) == ExitCode.USAGE
    assert main([*flags, "-o", str(tmp_path / "codes")]) == ExitCode.USAGE
    assert "exists already" in capsys.readouterr().err
    assert main([*flags, "--dry-run", "-o", str(tmp_path / "x")]) == ExitCode.OK
    plan = capsys.readouterr().out
    assert "ort_int4_b32" in plan
    assert re.search(r"onnx +calibration: about \d+ s for 38,400 tokens and 2,688 patches .* MiB of memory\n", plan)
    assert main([*flags, "--method", "awq-gptq", "--text-only", "--dry-run", "-o", str(tmp_path / "x")]) == ExitCode.OK
    assert re.search(r"onnx +calibration: at least \d+ s for 38,400 tokens at the speed", capsys.readouterr().out)
    assert not (tmp_path / "x").exists()


def test_the_end_names_the_export_that_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As typed, in a folder whose name a shell would take apart."""
    from export.__main__ import root
    from runtime_py.command.dispatch import execute

    (tmp_path / "my codes").mkdir()
    monkeypatch.chdir(tmp_path / "my codes")
    flags = ["--model", "minicpm-v", "--weights", "demo", "--target", "cpu"]
    options = ["--asymmetric", "--block-size", "64", "--head-precision", "int8", "--cache-dtype", "float32"]
    small = ["--method", "mse-clip", "--samples", "2", "--held-out", "0"]
    assert main([*flags, *options, *small, "-o", str(tmp_path / "my codes" / "scales")]) == ExitCode.OK
    (told,) = re.findall(r"next: edgeproof (.*)", capsys.readouterr().err)
    words = shlex.split(told)
    assert execute(root(), "edgeproof", [*words, "--skip-verify", "-o", "out"]) == ExitCode.OK
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["backends"]["onnx"]["calibration"]["method"] == "mse-clip"


def test_options_that_the_export_refuses_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="zero points of their own"):
        plan(request(tmp_path / "x", asymmetric=True, options={"decoder_library": True}))
