"""Files for llama.cpp of a checkpoint's sizes, written once into a folder."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from parity_tests.laboratory.serving_speed.sizes import sizes_of

WRITER = Path(__file__).parent / "llama_files.py"
DECODER, TOWER = "decoder.gguf", "mmproj.gguf"


def gguf_files(python: Path, model: Path, context: int, folder: Path) -> tuple[Path, Path]:
    """A random decoder and tower, unless the folder has them.

    Args:
        python: an interpreter with gguf and NumPy.
        model: the checkpoint, a MiniCPM-V 1.0.
    """
    decoder, tower = folder / DECODER, folder / TOWER
    if not (decoder.is_file() and tower.is_file()):
        folder.mkdir(parents=True, exist_ok=True)
        described = folder / "sizes.json"
        described.write_text(json.dumps(sizes_of(model, context)), encoding="utf-8")
        subprocess.run([str(python), str(WRITER), str(described), str(decoder), str(tower)], check=True)
    return decoder, tower
