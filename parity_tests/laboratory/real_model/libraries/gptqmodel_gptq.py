"""GPTQModel's GPTQ on a whole model: its defaults, or activation order with static groups (``static=1``)."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

BITS, GROUP = 4, 32


def main(folder: str, ids: str, out: str, options: dict[str, str]) -> None:
    """Quantise, read back, write."""
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig
    from safetensors.torch import save_file

    ordered: dict[str, Any] = {"desc_act": True, "static_groups": True, "act_group_aware": False}
    config = QuantizeConfig(bits=BITS, group_size=GROUP, sym=True, **(ordered if options.get("static") else {}))
    model = GPTQModel.load(folder, config, device="cpu", dtype=torch.float32)
    ids_of = json.loads(Path(ids).read_text(encoding="utf-8"))
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids_of]
    began = time.process_time()
    model.quantize(rows, batch_size=1)
    spent = time.process_time() - began
    layers = {name: module for name, module in model.model.named_modules() if name.endswith("_proj")}
    read = {f"{name}.weight": module.dequantize_weight().T.float().contiguous() for name, module in layers.items()}
    save_file(read, out)
    sys.stdout.write(json.dumps({"processor_seconds": round(spent, 1)}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], dict(pair.split("=", 1) for pair in sys.argv[4:]))
