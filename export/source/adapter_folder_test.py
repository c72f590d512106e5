"""Folders that PEFT saved: refused by name, beside a base and alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from export.checkpoint.opened import open_folder
from export.source.hub import DEMO_FOLDER
from runtime_py.errors import CheckpointError

SETTINGS = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "openbmb/MiniCPM-V-2", "r": 8}).encode()


def adapter(folder: Path, settings: bytes = SETTINGS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_bytes(settings)
    save_file({"base_model.model.llm.q_proj.lora_A.weight": torch.zeros(8, 128)}, str(folder / "adapter_model.safetensors"))
    return folder


def test_an_adapter_alone_is_told_from_a_folder_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds an adapter .* into its base 'openbmb/MiniCPM-V-2'") as refusal:
        open_folder(adapter(tmp_path))
    assert "merge_and_unload" in refusal.value.next_step


@pytest.mark.parametrize("settings", [SETTINGS, b"", b"[]", b'{"base_model_name_or_path": 5}', b"\xff"])
def test_a_base_with_an_adapter_beside_it_is_not_exported_without(tmp_path: Path, settings: bytes) -> None:
    folder = Path(shutil.copytree(DEMO_FOLDER / "minicpm-v", tmp_path / "tuned"))
    open_folder(folder)
    with pytest.raises(CheckpointError, match="tuned holds an adapter"):
        open_folder(adapter(folder, settings))
