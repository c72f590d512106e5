"""Names of published checkpoints, as people write them; none of these asks a network."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from export.families.names import _by_key, find, meant, nearest, published
from export.families.registry import families
from runtime_py.errors import UnsupportedModelError, UsageError

MINICPM_V_2 = "openbmb/MiniCPM-V-2"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("minicpm-v", "openbmb/MiniCPM-V"),
        ("omnilmm-3b", "openbmb/MiniCPM-V"),
        ("OmniLMM_3B", "openbmb/MiniCPM-V"),
        ("openbmb/omnilmm-3b", "openbmb/MiniCPM-V"),
        ("minicpm-v-1.0", "openbmb/MiniCPM-V"),
        ("minicpm-v-2", MINICPM_V_2),
        ("minicpm-v-2.0", MINICPM_V_2),
        ("minicpm-v2", MINICPM_V_2),
        ("MiniCPM_V 2.0", MINICPM_V_2),
        ("OPENBMB/minicpm-v-2", MINICPM_V_2),
        ("openbmb/minicpm_v_2.0", MINICPM_V_2),
        ("minicpm-v-2.5", "openbmb/MiniCPM-Llama3-V-2_5"),
        ("MiniCPM-Llama3-V-2_5", "openbmb/MiniCPM-Llama3-V-2_5"),
        ("openbmb/MiniCPM-Llama3-V-2.5", "openbmb/MiniCPM-Llama3-V-2_5"),
        ("cogvlm2-video-llama3-chat", "THUDM/cogvlm2-video-llama3-chat"),
        ("thudm/CogVLM2", "THUDM/cogvlm2-llama3-chat-19B"),
        ("xverse-v-13b", "xverse/XVERSE-V-13B"),
        ("wemm-chat-2k-cn", "feipengma/WeMM-Chat-2k-CN"),
        ("qwen2-vl-7b-instruct", "Qwen/Qwen2-VL-7B-Instruct"),
    ],
)
def test_names_that_people_use(name: str, hub_id: str) -> None:
    match = find(name)
    assert match is not None and match.hub_id == hub_id
    assert meant(name).hub_id == hub_id


def test_every_published_checkpoint_has_its_own_names() -> None:
    for one in published():
        organisation, _, repository = one.hub_id.partition("/")
        for name in (one.hub_id, one.hub_id.lower(), repository, f"{organisation}/{repository.replace('-', '_')}"):
            match = find(name)
            assert match is not None and match.hub_id == one.hub_id, name
    for key, found_ones in _by_key(published()).items():
        assert len({one.family.name for one in found_ones}) == 1, f"{key} is a name in two families"
    for family in families().values():
        for name in (family.name, *family.aliases):
            assert meant(name).hub_id == family.hub_ids[0]


def test_other_repositories_are_left_to_the_hub() -> None:
    for name in ("me/minicpm-v-2", "HwwwwwwwH/MiniCPM-V-2", "openbmb/MiniCPM-V-2_6"):
        stands_for = meant(name)
        assert stands_for.published is None and stands_for.hub_id == name


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("minicmp-v", "minicpm-v"),
        ("minicpm-v-3", "MiniCPM-V-2"),
        ("cogvlm", "cogvlm2"),
        ("Awaker2.5VL-7B", "awaker2.5-vl"),
        ("xverse", "xverse-v"),
        ("openbnb/MiniCPM-V-2", MINICPM_V_2),
        ("openbmb/MiniCMP-V-2", MINICPM_V_2),
        ("THUDM/cogvlm2-llama3-chat-19b-base", "THUDM/cogvlm2-llama3-chat-19B"),
    ],
)
def test_mistyped_names_are_told_the_nearest(name: str, near: str) -> None:
    assert near in nearest(name)
    if "/" not in name:
        with pytest.raises((UsageError, UnsupportedModelError), match="did you mean"):
            meant(name)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("minicpm-v-2.6", "minicpm-v"),
        ("MiniCPM-V-4_5", "minicpm-v"),
        ("qwen2.5-vl", "qwen2-vl"),
        ("Qwen2.5-VL-7B-Instruct", "qwen2-vl"),
        ("minicpm-llama3-v-3", "minicpm-llama3-v"),
    ],
)
def test_another_version_is_said_to_be_one(name: str, family: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"^--model {name} is a version of {family} that is not built") as told:
        meant(name)
    assert set(families()[family].hub_ids) <= set(re.findall(r"[\w.-]+/[\w.-]+", told.value.expected))


@pytest.mark.parametrize("name", ["qwen2-vl-72b-instruct", "2.6", "llava-1.5", "cogvlm"])
def test_another_size_or_a_number_alone_is_no_version(name: str) -> None:
    with pytest.raises(UsageError, match="is no family, hub id or folder"):
        meant(name)


def test_names_far_from_all_are_told_where_to_look() -> None:
    with pytest.raises(UsageError, match="edgeproof models"):
        meant("llama")
    assert nearest("nobody/nothing-at-all") == []


def test_folders_and_what_was_meant_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MiniCPM-V-2", "minicpm-v", "checkpoints/mine"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "smollm2.gguf").touch()
    assert meant("MiniCPM-V-2").folder == Path("MiniCPM-V-2"), "a folder goes before a name that no family declares"
    assert meant("minicpm-v").hub_id == "openbmb/MiniCPM-V", "an alias goes before a folder"
    assert meant("./minicpm-v").folder == Path("./minicpm-v")
    for name, words in (
        ("checkpoints/mien", "did you mean mine?"),
        ("./MiniCPM-V2", "did you mean MiniCPM-V-2"),
        ("./nothing", "there is no such folder"),
        ("/nowhere/at/all", "there is no such folder"),
        ("model.safetensors", "is a file"),
        ("smollm2.gguf", "GGUF files are made from a checkpoint"),
        ("https://hub.example/openbmb/MiniCPM-V-2/tree/main", "--model openbmb/MiniCPM-V-2"),
        (r"C:\models\x", "there is no such folder"),
    ):
        with pytest.raises(UsageError) as told:
            meant(name)
        assert words in str(told.value), name
