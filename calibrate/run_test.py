"""A calibration of the demo checkpoint from request to folder: resumed, replayed, refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from calibrate.cli import main
from calibrate.codes import DequantisedWeights
from calibrate.conftest import decoder_call, run_decoder
from calibrate.grids import GRIDS
from calibrate.overlay import OverlaidWeights
from calibrate.request import CalibrationRequest
from calibrate.run import calibrate, plan
from calibrate.stored import StoredCodes, read_manifest
from runtime_py.errors import ExitCode, InterruptedExportError, PackageError, UsageError


def request(output: Path, **changes: object) -> CalibrationRequest:
    given = {"model": "minicpm-v", "weights": "demo", "target": "cpu", "method": "gptq", "samples": 4, **changes}
    return CalibrationRequest(output=output, **given)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrate(request(tmp_path_factory.mktemp("calibration") / "codes"))


def test_a_cut_off_run_resumes_to_identical_files(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calibrate import blockwise

    solved = []

    def interrupted(method, layer):  # type: ignore[no-untyped-def]
        solved.append(layer.name)
        if layer.name == "decoder.layers.1.mlp.down":
            raise KeyboardInterrupt
        return original(method, layer)

    original = blockwise.solve
    monkeypatch.setattr(blockwise, "solve", interrupted)
    with pytest.raises(InterruptedExportError):
        calibrate(request(tmp_path / "codes"))
    assert not (tmp_path / "codes").exists()

    def watched(method, layer):  # type: ignore[no-untyped-def]
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


@pytest.mark.parametrize("change", [{"seed": 5}, {"samples": 5}, {"method": "rtn"}, {"text_only": True}])
def test_another_request_does_not_resume(change: dict[str, object], made: Path, tmp_path: Path) -> None:
    partial = tmp_path / "codes.partial"
    shutil.copytree(made, partial)
    from calibrate.run import _fingerprint, prompts_of
    from export.journal import Journal

    asked = request(tmp_path / "codes")
    checkpoint = plan(asked).checkpoint
    Journal(partial, _fingerprint(asked, checkpoint, prompts_of(asked, checkpoint)[1])).begin()
    with pytest.raises(UsageError, match="begun by another"):
        calibrate(request(tmp_path / "codes", resume=True, **change))


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "hqq", "sign-rounding"])
def test_stored_codes_beat_rounding_on_the_logits(method: str, tmp_path: Path) -> None:
    folder = calibrate(request(tmp_path / "codes", method=method, samples=8, sequential=False))
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
    found = run_decoder(spec, DequantisedWeights(stored.weights, stored, assignments, GRIDS), call)
    similarity = float(torch.nn.functional.cosine_similarity(wanted.flatten(), found.flatten(), dim=0))
    assert similarity > 0.97


def test_an_overlay_alone_changes_nothing(tmp_path: Path) -> None:
    folder = calibrate(request(tmp_path / "codes", method="awq", target="android"))
    planned = plan(request(tmp_path / "other", target="android"))
    weights = planned.checkpoint.weights
    assert weights is not None
    stored = StoredCodes(folder, "mlc", weights, planned.assignments["mlc"])
    assert stored.weights is not weights, "AWQ found no factor at all"
    call = decoder_call(planned.checkpoint.spec)
    wanted, found = (run_decoder(planned.checkpoint.spec, source, call) for source in (weights, stored.weights))
    assert float((wanted - found).abs().max()) < 1e-4 * float(wanted.abs().max())
    assert isinstance(stored.weights, OverlaidWeights)
    factors = stored.weights.overlay.rows.values()
    assert max(float((factor - 1).abs().max()) for factor in factors) > 0.05


def test_rows_of_stored_codes(made: Path, tmp_path: Path) -> None:
    planned = plan(request(tmp_path / "other"))
    assert planned.checkpoint.weights is not None
    stored = StoredCodes(made, "onnx", planned.checkpoint.weights, planned.assignments["onnx"])
    whole, part = stored.rows("decoder.head", 0, 661), stored.rows("decoder.head", 100, 130)
    assert torch.equal(whole.codes[100:130], part.codes)
    assert torch.equal(whole.scales[100:130], part.scales)
    assert stored.rows("embed_tokens.table", 0, 3).codes.shape == (3, 128), "layers without stored codes are rounded"


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
    assert main([*flags, "--method", "rtn", "--samples", "2", "-o", str(tmp_path / "codes"), "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["samples"]["count"] == 2
    assert main([*flags, "--method", "best", "-o", str(tmp_path / "x")]) == ExitCode.USAGE
    assert main([*flags, "--precision", "fp16", "-o", str(tmp_path / "x")]) == ExitCode.USAGE
    assert main([*flags, "-o", str(tmp_path / "codes")]) == ExitCode.USAGE
    assert "exists already" in capsys.readouterr().err
    assert main([*flags, "--dry-run", "-o", str(tmp_path / "x")]) == ExitCode.OK
    assert "ort_int4_b32" in capsys.readouterr().out
    assert not (tmp_path / "x").exists()
