"""GPTQModel's GPTQ on a whole model, with its defaults."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

BITS, GROUP = 4, 32


def main(folder: str, ids: str, out: str) -> None:
    """Quantise, read back, write."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its loader wants two, its own count on two processors is one
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module
    from safetensors.torch import save_file

    config = QuantizeConfig(bits=BITS, group_size=GROUP, sym=True, offload_to_disk=False)
    model = GPTQModel.load(folder, config, device="cpu", dtype=torch.float32)
    ids_of = json.loads(Path(ids).read_text(encoding="utf-8"))
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids_of]
    began = time.process_time()
    model.quantize(rows, batch_size=1)
    spent = time.process_time() - began
    layers = {name: module for name, module in model.model.named_modules() if name.endswith("_proj")}
    for module in layers.values():
        if module.qzero_format() == 1:  # as files hold zero points, one too low; what is read back wants them whole
            convert_gptq_v1_to_v2_format_module(module, bits=BITS, pack_dtype=module.pack_dtype)
    read = {f"{name}.weight": module.dequantize_weight().T.float().contiguous() for name, module in layers.items()}
    save_file(read, out)
    sys.stdout.write(json.dumps({"processor_seconds": round(spent, 1)}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
