"""A tiny real model in NumPy: every logit depends on every token and position fed before it, so that a lost, doubled or
reordered cache entry shows. Tests of the pipeline run it; the graph backends have tests of their own."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.families.minicpm_v.prompt import prompt
from runtime_py import tokenizer
from runtime_py.backends.base import Arrays
from runtime_py.contracts import CONNECTOR, EMBED, VISION
from runtime_py.generation.session import Limits
from runtime_py.model import Model
from runtime_py.package import Package
from runtime_py.preprocess.minicpm_v import Processor
from runtime_py.prompt.format import PromptFormat

HIDDEN, VISION_WIDTH, QUERIES = 24, 12, 4
VOCABULARY = 300
DEMO_CHECKPOINT = Path(__file__).parents[1] / "export" / "demo" / "checkpoints" / "minicpm-v"


@dataclass
class AttentionState:
    capacity: int
    length: int = 0
    keys: list[np.ndarray] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)


class AttentionBackend:
    """One causal attention layer over embeddings and positions, one mean-pooling tower, one linear connector."""

    name = "numpy"

    def __init__(self, vocabulary: int = VOCABULARY, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        self.table = draw.normal(size=(vocabulary, HIDDEN))
        self.query, self.key, self.value = (draw.normal(size=(HIDDEN, HIDDEN)) / HIDDEN**0.5 for _ in range(3))
        self.head = draw.normal(size=(HIDDEN, vocabulary))
        self.pixels = draw.normal(size=(3, VISION_WIDTH))
        self.rows = draw.normal(size=(QUERIES, VISION_WIDTH, HIDDEN))
        self.calls: list[int] = []
        """Tokens of every decoder call."""

    def run(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        if stage == VISION:
            pixels = inputs["pixel_values"].astype(np.float64)
            batch, _, height, width = pixels.shape
            patches = pixels.reshape(batch, 3, height // 14, 14, width // 14, 14).mean(axis=(3, 5))
            features = np.einsum("bcij,cv->bijv", patches, self.pixels).reshape(batch, -1, VISION_WIDTH)
            return {"vision_features": features.astype(np.float32)}
        if stage == CONNECTOR:
            pooled = inputs["vision_features"].mean(axis=1)
            return {"image_features": np.einsum("bv,qvh->bqh", pooled, self.rows).astype(np.float32)}
        assert stage == EMBED
        return {"inputs_embeds": self.table[inputs["input_ids"]].astype(np.float32)}

    def start(self, capacity: int) -> AttentionState:
        return AttentionState(capacity)

    def forward(self, state: Any, inputs: Arrays, logit_positions: np.ndarray) -> np.ndarray:
        embeds = inputs["inputs_embeds"][0].astype(np.float64)
        positions = inputs["position_ids"].reshape(-1)
        assert state.length + len(embeds) <= state.capacity
        self.calls.append(len(embeds))
        out = []
        for row, position in zip(embeds, positions, strict=True):
            turned = row + np.sin(position + np.arange(HIDDEN))
            state.keys.append(turned @ self.key)
            state.values.append(turned @ self.value)
            scores = np.array(state.keys) @ (turned @ self.query) / HIDDEN**0.5
            weights = np.exp(scores - scores.max())
            out.append((turned + weights / weights.sum() @ np.array(state.values)) @ self.head)
        state.length += len(embeds)
        return np.array(out)[logit_positions][None].astype(np.float32)

    def rewind(self, state: Any, length: int) -> None:
        del state.keys[length:], state.values[length:]
        state.length = length

    def close(self) -> None:
        pass


MARKS = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 101, "</image>": 102, "<slice>": 111, "</slice>": 112}


def minicpm_prompt(variant: str = "1.0", limit: int = 2048) -> PromptFormat:
    """The prompt as export/families/minicpm_v declares it."""
    return replace(prompt(MARKS, variant == "2.0"), limit=limit)


def minicpm_settings(variant: str = "1.0", limit: int = 2048, **changes: Any) -> dict[str, Any]:
    """Processor settings as export/families/minicpm_v writes them, for pictures of 28 pixels and 4 queries."""
    return {
        "variant": variant,
        "image_size": 28,
        "patch_size": 14,
        "native_grid": 3,
        "queries": QUERIES,
        "width": HIDDEN,
        "scale_resolution": 28,
        "max_slices": 9,
        "prompt": minicpm_prompt(variant, limit).to_json(),
        **changes,
    }


GENERATION = {
    "stop_ids": [2],
    "temperature": 0.0,
    "top_p": 0.8,
    "top_k": 100,
    "repetition_penalty": 1.0,
    "max_new_tokens": 12,
}
"""Greedy answers of a few tokens."""


def model_of(words: tokenizer.Tokenizer, folder: Path, limits: Limits, files: Sequence[str] = ()) -> Model:
    """`AttentionBackend` as a loaded package of MiniCPM-V that lists these files."""
    described = Package(
        folder=folder,
        manifest={"files": [{"path": path} for path in files]},
        family="minicpm-v",
        variant="1.0",
        target="cpu",
        precision="fp32",
        runtime_backend="ort",
        processor="minicpm_v",
        runtime=minicpm_settings(),
        generation=GENERATION,
        limits=limits,
        contracts={},
        files=(),
    )
    return Model(described, AttentionBackend(len(words.pieces)), Processor(minicpm_settings(), words), words)


@pytest.fixture
def backend() -> AttentionBackend:
    return AttentionBackend()


@pytest.fixture
def processor() -> Processor:
    return Processor(minicpm_settings(), None)


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)


CORPUS = [
    "What colour is the round shape in the picture? It is red.",
    "图片里有几个红色的圆形？有三个红色的圆形。",
    "The shape on the left is blue, the shape on the right is green.",
    "<用户>这是什么颜色？<AI>这是蓝色。",
    "<用户>How many shapes are there?<AI>There are 3 shapes.",
]

SYMBOLS = {3: "<SEP>", 4: "<CLS>", 5: "\n", 6: "\t", 101: "<image>", 102: "</image>", 111: "<slice>", 112: "</slice>"}


def train_sentencepiece(path: Path, dummy_prefix: bool = False, symbols: bool = True) -> Path:
    """A BPE model with byte fallback; with ``symbols`` its special ids are MiniCPM-V's."""
    import sentencepiece

    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4),
        model_writer=writer,
        model_type="bpe",
        vocab_size=520,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=[SYMBOLS.get(index, f"<reserved_{index}>") for index in range(3, 113)] if symbols else [],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path.write_bytes(writer.getvalue())
    return path


@pytest.fixture(scope="session")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.fixture
def words(sentencepiece_file: Path) -> tokenizer.Tokenizer:
    return tokenizer.read_sentencepiece(sentencepiece_file)


def export_demo(out: Path) -> Path:
    """Export the demo checkpoint for the processor in fp32, without its check.

    Not by the command line, which makes an exit code of a signal that ends the process: a run of tests that is stopped while
    a package is made, the longest part of many, would tell a failed set-up and go on.
    """
    from export.pipeline import export
    from export.request import ExportRequest

    return export(ExportRequest(str(DEMO_CHECKPOINT), "cpu", precision="fp32", output=out, skip_verify=True), None)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the demo checkpoint, for the processor in fp32, which must not be written to."""
    pytest.importorskip("onnxruntime")
    return export_demo(tmp_path_factory.mktemp("package") / "out")
