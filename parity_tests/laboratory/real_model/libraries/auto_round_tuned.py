"""AutoRound on a whole model; the text is packed into rows of one length, which it wants. ``turns=N`` of its 200."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

BITS, GROUP, LENGTH, BATCH = 4, 32, 256, 8


def main(folder: str, ids: str, out: str, options: dict[str, str]) -> None:
    """Quantise, read back, write."""
    import torch
    from auto_round import AutoRound
    from safetensors.torch import save_file
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    flat = [token for row in json.loads(Path(ids).read_text(encoding="utf-8")) for token in row]
    rows = [torch.tensor(flat[start : start + LENGTH]) for start in range(0, len(flat) - LENGTH + 1, LENGTH)]
    read: Any = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
    data: Any = DataLoader(read, batch_size=BATCH)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tuning = AutoRound(
        model, AutoTokenizer.from_pretrained(folder), bits=BITS, group_size=GROUP, sym=True, seqlen=LENGTH,
        iters=int(options.get("turns", "200")), nsamples=len(rows), batch_size=BATCH, dataset=data, device_map="cpu",
        amp=False, enable_torch_compile=False,
    )  # fmt: skip
    began = time.process_time()
    quantised = tuning.quantize()[0]
    spent = time.process_time() - began
    layers = {name: module for name, module in quantised.named_modules() if name.endswith("_proj")}
    save_file({f"{name}.weight": module.weight.data.float().contiguous() for name, module in layers.items()}, out)
    sys.stdout.write(json.dumps({"processor_seconds": round(spent, 1)}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], dict(pair.split("=", 1) for pair in sys.argv[4:]))
