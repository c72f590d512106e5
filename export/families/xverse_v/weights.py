"""Published tensor names of XVERSE-V-13B's three parts, and how each parameter comes from them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from export.families.tensors import with_embedding
from export.modules.connectors.specs import MlpConnectorSpec
from export.modules.rules import pair, tied_head, with_low_rank
from export.modules.vision.specs import VisionSpec
from export.modules.vision.transformers_weights import clip_rules
from export.source.tensor_source import TensorSource
from export.source.weight_map import Rule, WeightMap, compute, stack_rules, take
from export.specs import DecoderSpec, ModelSpec
from runtime_py.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

VIT, LLM, ADAPTERS = "vit/", "llm/", "adapters/"
"""Prefixes of the three parts in the joined checkpoint."""

IGNORED = (
    f"{VIT}text_model.*",
    f"{VIT}*_projection.weight",
    f"{VIT}logit_scale",
    f"{VIT}*.position_ids",
    f"{VIT}vision_model.post_layernorm.*",
    f"{LLM}*.rotary_emb.inv_freq",
)


def open_parts(clip: Path, llm: Path, adapters: Path) -> TensorSource:
    """CLIP folder, LLM folder and adapters (a file, or a folder with one) as one checkpoint."""
    from export.source.checkpoint import joined, open_checkpoint, open_files
    from export.source.training_names import plain_names

    return joined(
        {
            VIT: open_checkpoint(clip),
            LLM: open_checkpoint(llm),
            ADAPTERS: open_checkpoint(adapters, True) if adapters.is_dir() else plain_names(open_files([adapters]), True),
        }
    )


def weight_map(spec: ModelSpec, source: TensorSource, rank: int, lora_scale: float) -> WeightMap:
    """One rule per parameter; the last two stored and the last CLIP blocks are left alone."""
    assert isinstance(spec.vision, VisionSpec) and isinstance(spec.connector, MlpConnectorSpec)
    stored = f"{ADAPTERS}ln_vision.weight" in source.infos or not source.infos
    rules = [*clip_rules(spec.vision, f"{VIT}vision_model"), *_connector(spec.connector, stored)]
    rules += _language(spec.decoder, rank, lora_scale, _spelling(source))
    unread = (f"{VIT}vision_model.encoder.layers.{spec.vision.layers}.*",)
    head = f"{LLM}lm_head.weight"
    whole = with_embedding(rules, source, spec, head)
    return WeightMap(rules, whole, IGNORED + unread, tied_head(spec.decoder, head))


def _spelling(source: TensorSource) -> str:
    """How the adapter names spell a LoRA matrix: PEFT 0.2 ``lora_A.weight``, later ``lora_A.default.weight``."""
    names = [name for name in source.infos if name.startswith(ADAPTERS) and ".lora_" in name]
    if source.infos and not names:
        raise CheckpointError(
            "the adapters file holds no LoRA matrix",
            "llama_model.base_model.model.model.layers.N....lora_A.weight or lora_A.default.weight",
            "download adapter_and_lora.bin again",
        )
    return ".default.weight" if any(".default." in name for name in names) else ".weight"


def _connector(spec: MlpConnectorSpec, norm_is_stored: bool) -> Iterator[Rule]:
    """The frozen norm may be absent from the file; then it is the identity scale and shift, not skipped."""
    vision, width = spec.vision_width, spec.width
    if norm_is_stored:
        yield from pair("connector.norm", f"{ADAPTERS}ln_vision", (vision,))
    else:
        yield compute("connector.norm.weight", [], (vision,), partial(_constant, size=vision, value=1.0))
        yield compute("connector.norm.bias", [], (vision,), partial(_constant, size=vision, value=0.0))
    yield from pair("connector.fc1", f"{ADAPTERS}llama_proj.0", (width, vision))
    yield from pair("connector.fc2", f"{ADAPTERS}llama_proj.2", (width, width))


def _constant(size: int, value: float) -> Tensor:
    import torch

    return torch.full((size,), value)


def _language(spec: DecoderSpec, rank: int, scale: float, spelling: str) -> Iterator[Rule]:
    hidden, mlp, table = spec.hidden, spec.mlp_width, (spec.vocabulary, spec.hidden)
    query, key = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    yield take("embed_tokens.table.weight", f"{LLM}model.embed_tokens.weight", table)
    for i in range(spec.layers):
        ours, theirs = f"decoder.layers.{i}", f"model.layers.{i}"
        yield take(f"{ours}.input_norm.weight", f"{LLM}{theirs}.input_layernorm.weight", (hidden,))
        yield take(f"{ours}.post_norm.weight", f"{LLM}{theirs}.post_attention_layernorm.weight", (hidden,))
        fused = {
            "attention.qkv": [("self_attn.q_proj", query, hidden), *((f"self_attn.{n}_proj", key, hidden) for n in "kv")],
            "attention.out": [("self_attn.o_proj", hidden, query)],
            "mlp.gate_up": [("mlp.gate_proj", mlp, hidden), ("mlp.up_proj", mlp, hidden)],
            "mlp.down": [("mlp.down_proj", hidden, mlp)],
        }
        for name, parts in fused.items():
            merged = [_merged(f"{theirs}.{part}", (rows, columns), rank, scale, spelling) for part, rows, columns in parts]
            yield stack_rules(f"{ours}.{name}.weight", merged)
    yield take("decoder.norm.weight", f"{LLM}model.norm.weight", (hidden,))
    yield take("decoder.head.weight", f"{LLM}{'model.embed_tokens' if spec.tied_head else 'lm_head'}.weight", table)


def _merged(name: str, shape: tuple[int, int], rank: int, scale: float, spelling: str) -> Rule:
    """W + scale B A of one published linear."""
    adapter = f"{ADAPTERS}llama_model.base_model.model.{name}"
    low = (f"{adapter}.lora_A{spelling}", f"{adapter}.lora_B{spelling}")
    return with_low_rank(name, f"{LLM}{name}.weight", *low, shape, rank, scale)
