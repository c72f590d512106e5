"""The sizes of a package's decoder, from which every peer makes a random one of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime_py.errors import UsageError
from runtime_py.files.json_file import MEGABYTE, read_json

KEYS = {
    "hidden": "hidden_size",
    "mlp": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "vocabulary": "vocab_size",
}
"""Our words to those of config.json."""

HEAD = "output.weight"
"""The matrix that makes logits, in GGUF's words."""


@dataclass(frozen=True)
class DecoderShape:
    """A decoder of the Llama kind with a head of its own."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def head_width(self) -> int:
        return self.hidden // self.heads

    def matrices(self) -> list[tuple[str, int, int]]:
        """Name in GGUF's words, rows, columns of every matrix of a layer; a name with ``{}`` is there once a layer."""
        keys = self.head_width * self.kv_heads
        wide = self.head_width * self.heads
        layer = [
            ("attn_q", wide, self.hidden),
            ("attn_k", keys, self.hidden),
            ("attn_v", keys, self.hidden),
            ("attn_output", self.hidden, wide),
            ("ffn_gate", self.mlp, self.hidden),
            ("ffn_up", self.mlp, self.hidden),
            ("ffn_down", self.hidden, self.mlp),
        ]
        return [(f"blk.{{}}.{name}.weight", rows, columns) for name, rows, columns in layer] + [
            (HEAD, self.vocabulary, self.hidden)
        ]

    @property
    def weights(self) -> int:
        """Weights that every token reads; the embedding's one row is not counted."""
        return sum(rows * columns * (self.layers if "{}" in name else 1) for name, rows, columns in self.matrices())

    def to_json(self) -> dict[str, int]:
        return asdict(self)


def shape_of(folder: Path) -> DecoderShape:
    """The sizes that a package's config.json states.

    Raises:
        UsageError: it states none, or not all of them.
    """
    path = folder / "config.json"
    stated: dict[str, Any] = read_json(path, MEGABYTE) if path.is_file() else {}
    stated = stated.get("text_config", stated)
    missing = [key for key in KEYS.values() if not isinstance(stated.get(key), int)]
    if missing:
        raise UsageError(
            f"{path} does not state {', '.join(missing)}",
            "the decoder's sizes, from which the peers are made",
            "leave --peers out, or export the package again",
        )
    sizes = {ours: stated[theirs] for ours, theirs in KEYS.items()}
    return DecoderShape(**sizes, kv_heads=stated.get("num_key_value_heads", sizes["heads"]))
