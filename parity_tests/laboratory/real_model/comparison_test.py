"""What of the comparison needs no model: other libraries' names, llama.cpp's types, the table."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path

import torch
from safetensors.torch import save_file

from parity_tests.laboratory.real_model.comparison import canonical, lines
from parity_tests.laboratory.real_model.libraries.llama_cpp import kind_of


class Kind(IntEnum):
    """gguf.GGMLQuantizationType, as far as it is asked for."""

    Q4_0 = 2
    Q5_0 = 6
    Q8_0 = 8
    Q4_K = 12
    Q6_K = 14


def test_rows_of_projections_are_joined_in_our_order(tmp_path: Path) -> None:
    sizes = {"q_proj": 6, "k_proj": 2, "v_proj": 2}
    tensors = {f"model.layers.3.self_attn.{name}.weight": torch.randn(rows, 4) for name, rows in sizes.items()}
    tensors["model.layers.3.input_layernorm.weight"] = torch.randn(4)
    tensors["model.embed_tokens.weight"] = torch.randn(5, 4)
    save_file(tensors, tmp_path / "weights.safetensors")
    read = canonical(tmp_path / "weights.safetensors", own_table=True)
    joined = read["decoder.layers.3.attention.qkv.weight"]
    assert torch.equal(joined[6:8], tensors["model.layers.3.self_attn.k_proj.weight"])
    assert torch.equal(read["decoder.layers.3.input_norm.weight"], tensors["model.layers.3.input_layernorm.weight"])
    assert torch.equal(read["decoder.head.weight"], read["embed_tokens.table.weight"])
    assert "decoder.layers.3.mlp.down.weight" not in read, "a file without a layer changes nothing of it"
    assert "decoder.head.weight" not in canonical(tmp_path / "weights.safetensors", own_table=False)


def test_the_mixture_falls_back_in_rows_that_256_does_not_divide() -> None:
    down = [kind_of(Kind, "q4_k_m", f"model.layers.{layer}.mlp.down_proj.weight", 1536, 30) for layer in range(30)]
    assert [layer for layer, kind in enumerate(down) if kind == Kind.Q6_K] == [
        0,
        1,
        2,
        5,
        8,
        11,
        14,
        17,
        20,
        23,
        *range(26, 30),
    ]
    assert kind_of(Kind, "q4_k_m", "model.layers.4.self_attn.v_proj.weight", 576, 30) == Kind.Q5_0
    assert kind_of(Kind, "q4_k_m", "model.embed_tokens.weight", 576, 30) == Kind.Q8_0
    assert kind_of(Kind, "q4_0", "model.layers.0.mlp.down_proj.weight", 1536, 30) == Kind.Q4_0


def test_a_library_that_does_not_run_says_why() -> None:
    measured = {
        "bits": 5.34, "bytes": 89_800_000, "perplexity": 16.6, "kl": 0.07, "median_kl": 0.05, "p99_kl": 0.4, "same": 0.86,
        "processor_seconds": 70.0,
    }  # fmt: skip
    table = lines({"gptq": measured, "other": {"error": "no wheel for this machine"}})
    assert table[2] == "| gptq | 5.34 | 89.8 | 16.600 | 0.0700 | 0.0500 | 0.400 | 86.00 % | 70 |"
    assert table[3].startswith("| other | not run: no wheel for this machine |")
    assert len({line.count("|") for line in table}) == 1
