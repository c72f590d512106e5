"""Every published checkpoint is planned at full size from its config alone, for every target, without a network."""

from __future__ import annotations

import json

import pytest

from export.__main__ import main
from export.checkpoint.opened import describe_checkpoint
from export.families.registry import families
from export.pipeline import plan
from export.request import ExportRequest
from runtime_py.contracts import STAGES
from runtime_py.errors import ExitCode

PUBLISHED = [(name, hub_id) for name, family in families().items() for hub_id in family.hub_ids]

PARAMETERS = {
    "openbmb/MiniCPM-V": (3.42e9, 3.44e9),
    "openbmb/OmniLMM-12B": (11.5e9, 11.8e9),
    "MetabrainAGI/Awaker2.5-VL": (10.96e9, 10.98e9),
    "Qwen/Qwen2-VL-7B-Instruct": (8.28e9, 8.30e9),
    "THUDM/cogvlm2-llama3-chat-19B": (19.4e9, 19.6e9),
    "THUDM/cogvlm2-video-llama3-chat": (12.4e9, 12.6e9),
}
"""Known sizes: 3.43, 11.6, 10.97 (11.08 less the folded q, k, v deltas), 8.29, 19.5 and 12.5 billion."""


@pytest.mark.parametrize(
    "target", ["cpu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("android", "ios", "desktop-gpu"))]
)
@pytest.mark.parametrize(("family", "hub_id"), PUBLISHED)
def test_every_published_checkpoint_is_planned(
    family: str, hub_id: str, target: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("a dry run fetched something")

    monkeypatch.setattr("export.source.hub.fetch", no_network)
    told = main(["--model", hub_id, "--target", target, "--dry-run", "--json"])
    assert told in (ExitCode.OK, ExitCode.DOES_NOT_FIT), "the plan is printed either way; whether it fits is this machine's"
    shown = json.loads(capsys.readouterr().out)
    assert [row["stage"] for row in shown["stages"]] == list(STAGES)
    assert shown["device_bytes"]["kv_cache"] > 0
    low, high = PARAMETERS.get(hub_id, (1e9, 20e9))
    assert low < sum(row["parameters"] for row in shown["stages"]) < high


@pytest.mark.parametrize(("family", "hub_id"), PUBLISHED)
def test_a_plan_says_which_published_checkpoints_are_rounded_already(family: str, hub_id: str) -> None:
    """From the name alone: no weight is here that could tell."""
    told = [note for note in plan(ExportRequest(hub_id, "cpu"), None).notes if "second time" in note]
    assert len(told) == ("-int4" in hub_id)
    assert all("published quantised by bitsandbytes" in note and "start from it" in note for note in told)


def test_a_hub_id_is_described_as_its_own_variant() -> None:
    image, video = (
        describe_checkpoint(ExportRequest(model=name, target="cpu"))
        for name in ("thudm/CogVLM2-llama3-chat-19B", "THUDM/cogvlm2-video-llama3-chat")
    )
    assert (image.id, video.id) == ("THUDM/cogvlm2-llama3-chat-19B", "THUDM/cogvlm2-video-llama3-chat")
    assert image.spec.decoder.adapter is not None
    assert video.spec.decoder.adapter is None
    assert image.spec.decoder.max_positions > video.spec.decoder.max_positions
