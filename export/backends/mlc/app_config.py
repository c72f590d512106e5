"""The two files that the MLC app and its packaging command read.

Source: mlc-ai/mlc-llm, android/MLCChat/mlc-package-config.json, python/mlc_llm/interface/package.py. Paths are relative
to the ``mlc`` folder of the package, where ``mlc_llm package`` is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.backends.mlc.record import Phone
from export.backends.mlc.shards import write_json
from targets.base import Limits


@dataclass(frozen=True)
class AppEntry:
    """One model in the app's list; ``device_bytes`` is the predicted memory on the device."""

    model_id: str
    model_lib: str
    device_bytes: int
    limits: Limits


def write(folder: Path, entry: AppEntry, phone: Phone, library: Path) -> list[Path]:
    """Write both files."""
    return [
        write_json(folder / "mlc-app-config.json", app_config(entry, phone)),
        write_json(folder / "mlc-package-config.json", package_config(entry, phone, library)),
    ]


def app_config(entry: AppEntry, phone: Phone) -> dict[str, Any]:
    """What the app lists; weights lie in its folder under the model id."""
    return {
        "model_list": [
            {
                "model_id": entry.model_id,
                "model_lib": entry.model_lib,
                phone.weights_key: entry.model_id,
                "estimated_vram_bytes": entry.device_bytes,
            }
        ]
    }


def package_config(entry: AppEntry, phone: Phone, library: Path) -> dict[str, Any]:
    """Input of ``mlc_llm package``: it takes the library given here and compiles nothing."""
    return {
        "device": phone.device,
        "model_list": [
            {
                "model": entry.model_id,
                "model_id": entry.model_id,
                "estimated_vram_bytes": entry.device_bytes,
                "bundle_weight": True,
                "model_lib": entry.model_lib,
                "overrides": {
                    "context_window_size": entry.limits.context,
                    "prefill_chunk_size": entry.limits.prefill_chunk,
                },
            }
        ],
        "model_lib_path_for_prepare_libs": {entry.model_lib: library.as_posix()},
    }
