"""A folder with the settings of a PEFT adapter, whose weights are the difference to those of a base and no whole model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from runtime_py.errors import CheckpointError
from runtime_py.files.json_file import MEGABYTE, read_json, shortened

ADAPTER_SETTINGS = "adapter_config.json"
"""What PEFT saves beside an adapter (huggingface/peft, src/peft/utils/constants.py, ``CONFIG_NAME``). transformers loads the
adapter of a folder that has it, whatever else is there (src/transformers/utils/peft_utils.py)."""

MERGE = "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)"


def refuse_adapter(folder: Path) -> None:
    """Raise CheckpointError for a folder of an adapter, beside its base or alone."""
    settings = folder / ADAPTER_SETTINGS
    if not os.path.lexists(settings):
        return
    try:
        stated: Any = read_json(settings, MEGABYTE, CheckpointError, "")
    except CheckpointError:
        stated = None
    base = stated.get("base_model_name_or_path") if isinstance(stated, dict) else None
    raise CheckpointError(
        f"{folder} holds an adapter (LoRA or another of PEFT, {ADAPTER_SETTINGS}) that was not merged"
        + (f" into its base {shortened(base)}" if isinstance(base, str) and base else ""),
        "the weights of a whole model",
        f"merge it: {MERGE}; where these weights are merged already, move {ADAPTER_SETTINGS} away",
    )
