"""llama.cpp's own quantisers, tensor by tensor: ``ggml_quantize_chunk`` of the library in xllamacpp, read back by gguf.

    python llama_cpp.py MODEL IDS.json OUT.safetensors [kind=q4_0|q4_k_m] [imatrix=1]

xllamacpp has no program that quantises a file, so the types of the mixture are chosen here as llama.cpp chooses them
(ggml-org/llama.cpp, src/llama-quant.cpp: ``llama_tensor_get_type``, ``use_more_bits`` and the fallbacks for rows that 256
does not divide), and the importance matrix is the mean square of every input (tools/imatrix).
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def kind_of(kinds: Any, mixture: str, name: str, columns: int, layers: int) -> Any:
    """The type of a tensor."""
    kind = kinds.Q4_0 if mixture == "q4_0" else kinds.Q4_K
    if "embed_tokens" in name:  # it is the head too
        kind = kinds.Q6_K
    elif mixture == "q4_k_m" and ("v_proj" in name or "down_proj" in name):
        place, eighth = int(name.split(".")[2]), layers // 8
        if place < eighth or place >= 7 * layers // 8 or (place - eighth) % 3 == 2:
            kind = kinds.Q6_K
    fallback = {kinds.Q4_K: kinds.Q5_0, kinds.Q6_K: kinds.Q8_0}
    return fallback[kind] if kind in fallback and columns % 256 else kind


def importance(folder: str, ids: str) -> dict[str, np.ndarray]:
    """Layer to the mean square of each of its inputs, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    power: dict[str, torch.Tensor] = {}

    def watch(name: str, module: torch.nn.Module) -> None:
        def seen(_: Any, given: tuple[torch.Tensor, ...]) -> None:
            rows = given[0].detach().flatten(0, -2).double()
            power[name] = power.get(name, torch.zeros(rows.shape[1], dtype=torch.float64)) + rows.square().sum(0)

        module.register_forward_pre_hook(seen)

    for name, module in model.named_modules():
        if name.endswith("_proj"):
            watch(name, module)
    with torch.no_grad():
        for row in json.loads(Path(ids).read_text(encoding="utf-8")):
            model.model(torch.tensor([row]))
    return {name: (value / value.mean()).float().numpy() for name, value in power.items()}


def main(folder: str, ids: str, out: str, options: dict[str, str]) -> None:
    """Quantise, read back, write; the sizes are those of the quantised tensors."""
    import xllamacpp
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
    from safetensors.numpy import load_file, save_file

    (library,) = Path(xllamacpp.__path__[0]).glob("*.so")
    chunk = ctypes.CDLL(str(library)).ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    layers = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    began = time.process_time()
    power = importance(folder, ids) if options.get("imatrix") else {}
    read, size, weights = {}, 0, 0
    for name, value in load_file(f"{folder}/model.safetensors").items():
        if value.ndim != 2:
            continue
        rows, columns = value.shape
        kind = kind_of(GGMLQuantizationType, options.get("kind", "q4_0"), name, columns, layers)
        length, width = GGML_QUANT_SIZES[kind]
        wide, packed = np.ascontiguousarray(value, np.float32), np.zeros((rows, columns // length * width), np.uint8)
        matters = power.get(name.removesuffix(".weight"))
        pointer = None if matters is None else matters.ctypes.data
        chunk(int(kind), wide.ctypes.data, packed.ctypes.data, 0, rows, columns, pointer)
        read[name] = np.ascontiguousarray(dequantize(packed, kind), np.float32)
        size, weights = size + packed.nbytes, weights + value.size
    spent = round(time.process_time() - began, 1)
    save_file(read, out)
    sys.stdout.write(json.dumps({"processor_seconds": spent, "bytes": size, "bits": round(8 * size / weights, 3)}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], dict(pair.split("=", 1) for pair in sys.argv[4:]))
