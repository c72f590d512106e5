"""llm-compressor's GPTQ or AWQ on a whole model, as its README runs it: ``oneshot``, block after block.

python llm_compressor.py MODEL IDS.json OUT.safetensors [OPTION...]

Options: method=gptq|awq, observer=memoryless_minmax|memoryless_mse, inputs=quantised|full.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

BITS, GROUP = 4, 32


def recipe(options: dict[str, str]) -> Any:
    """The modifiers; layers but the head become int4 in groups, symmetric."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    observer = options.get("observer", "memoryless_minmax")
    grid = {
        "num_bits": BITS,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": GROUP,
        "observer": observer,
    }
    given: dict[str, Any] = {"config_groups": {"int4": {"targets": ["Linear"], "weights": grid}}, "ignore": ["lm_head"]}
    if options.get("method") == "awq":
        return [AWQModifier(), QuantizationModifier(**given)]
    return GPTQModifier(dampening_frac=0.01, block_size=128, actorder="static", **given)


def main(folder: str, ids: str, out: str, options: dict[str, str]) -> None:
    """Quantise, read back, write."""
    import torch
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.pipelines.cache import IntermediatesCache
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = json.loads(Path(ids).read_text(encoding="utf-8"))
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked = recipe(options)
    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda *_: None  # AWQ pins what it keeps, for a GPU, without asking for one
    began = time.process_time()
    oneshot(
        model=model, tokenizer=AutoTokenizer.from_pretrained(folder), dataset=data, recipe=asked, batch_size=1,
        num_calibration_samples=len(rows), max_seq_length=max(map(len, rows)), shuffle_calibration_samples=False,
        pipeline="sequential", propagate_error=options.get("inputs") != "full",
    )  # fmt: skip
    spent = time.process_time() - began
    read = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            linear: Any = module
            scale = linear.weight_scale.data.float()
            grid = linear.quantization_scheme.weights
            # the weights are on the grid already; this says so whatever the version left in them
            read[f"{name}.weight"] = fake_quantize(linear.weight.data.float(), scale, torch.zeros_like(scale), grid)
        elif name.endswith("layernorm"):
            read[f"{name}.weight"] = module.weight.data.float()  # AWQ divides it
    save_file({name: value.contiguous() for name, value in read.items()}, out)
    sys.stdout.write(json.dumps({"processor_seconds": round(spent, 1)}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], dict(pair.split("=", 1) for pair in sys.argv[4:]))
