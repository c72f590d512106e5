"""A context without room for a picture, its prompt and an answer is refused by a plan, with the least that has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from export.__main__ import main
from export.families.registry import families
from export.pipeline import plan
from export.request import ExportRequest
from parity_tests.check.verifier import PackageVerifier
from runtime_py.errors import ExitCode, UsageError


def least(error: UsageError) -> int:
    return int(re.match(r"at least (\d+):", error.expected)[1])  # type: ignore[index]


@pytest.mark.parametrize("target", ["cpu", "android", "desktop-gpu"])
@pytest.mark.parametrize("family", list(families()))
def test_a_plan_from_a_name_refuses_what_holds_no_picture(family: str, target: str) -> None:
    with pytest.raises(UsageError, match="--context 10 holds no question about a picture") as caught:
        plan(ExportRequest(family, target, context=10), None)
    assert "rows of the smallest picture" in caught.value.expected
    enough = int(re.findall(r"use --context (\d+)", caught.value.next_step)[0])
    made = plan(ExportRequest(family, target, context=enough), None)
    assert made.options.limits.context == enough
    assert enough % 64 == 0 or enough == made.spec.decoder.max_positions


@pytest.mark.parametrize("target", ["cpu", "android"])
@pytest.mark.parametrize("demo", ["minicpm-v", "wemm", "cogvlm2"])
def test_the_least_is_the_least(demo: str, target: str) -> None:
    """With a tokenizer at hand the count is exact, and the check's question is the longer one of a demo's small pictures."""
    asked = {"weights": "demo", "context": 10}
    with pytest.raises(UsageError) as caught:
        plan(ExportRequest(demo, target, **asked), PackageVerifier())  # type: ignore[arg-type]
    enough = least(caught.value)
    for context in (enough - 1, enough):
        request = ExportRequest(demo, target, weights="demo", context=context)
        if context == enough:
            assert plan(request, PackageVerifier()).options.limits.context == enough
        else:
            with pytest.raises(UsageError, match=f"--context {context} holds"):
                plan(request, PackageVerifier())
    with pytest.raises(UsageError) as caught:
        plan(ExportRequest(demo, target, skip_verify=True, **asked), PackageVerifier())  # type: ignore[arg-type]
    assert least(caught.value) <= enough


def test_an_export_at_the_least_passes_and_below_it_begins_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", "minicpm-v", "--weights", "demo", "--target", "cpu", "-q", "-o", str(tmp_path / "out")]
    assert main([*flags, "--context", "10"]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    enough = re.findall(r"at least (\d+):", said)[0]
    assert main([*flags, "--context", enough]) == ExitCode.OK
