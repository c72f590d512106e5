"""What a tuning takes is said before it begins, and refused where it is not there."""

from pathlib import Path

import pytest
import torch

from calibrate.command.cli import main
from calibrate.conftest import RandomWeights, decoder_call, tiny_spec
from calibrate.request import TUNE_STEPS
from calibrate.run import calibrate, plan
from calibrate.run_test import request
from calibrate.tuning.scale_tuning_test import tuned
from calibrate.tuning.tuning_memory import memory
from export.families.registry import families
from export.modules.build import build_stage
from export.modules.kernels import Kernels
from runtime_py.errors import DoesNotFitError, ExitCode


@pytest.mark.parametrize("family", sorted(families()))
def test_the_plan_covers_what_a_sample_keeps(family: str) -> None:
    """Bytes for each token are no less than what automatic differentiation holds, and of its order."""
    spec = tiny_spec(family)
    with torch.device("meta"):
        module = build_stage(spec, "decoder", Kernels())
    weights = RandomWeights(spec)
    parameters = {name: weights.tensor(f"decoder.{name}").requires_grad_() for name, _ in module.named_parameters()}
    own = {value.untyped_storage().data_ptr() for value in parameters.values()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return value

    tokens = 64
    call = decoder_call(spec, tokens) | {"logit_positions": torch.tensor([tokens - 1])}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        torch.func.functional_call(module, parameters, (), call)
    measured = sum(storage.nbytes() for storage in kept.values()) / tokens
    estimated = memory(spec, {})[1]
    assert measured <= estimated <= 3 * measured


def test_flags_and_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--model", "minicpm-v", "--weights", "demo", "--target", "cpu", "-q", "-o", str(tmp_path / "x")]
    assert main([*flags, "--dry-run", "--tune-scales"]) == ExitCode.OK
    shown = capsys.readouterr().out
    assert f"scale tuning: {TUNE_STEPS} steps" in shown
    planned = plan(request(tmp_path / "x", precision="int4"))
    assert f"{memory(planned.checkpoint.spec, planned.assignments['onnx'])[0]:,} bytes" in shown
    assert main([*flags, "--dry-run"]) == ExitCode.OK
    assert "scale tuning" not in capsys.readouterr().out
    assert main([*flags, "--tune-scales", "-3"]) == ExitCode.USAGE
    monkeypatch.setattr("export.plan.machine.available_memory", lambda: 1 << 20)
    assert main([*flags, "--tune-scales", "7"]) == ExitCode.DOES_NOT_FIT
    assert "--tune-scales" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "refused before anything is written"
    with pytest.raises(DoesNotFitError):
        calibrate(tuned(tmp_path / "codes"))
