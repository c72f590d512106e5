"""Awaker2.5-VL: Qwen2-VL-7B with folded LoRA on q, k, v and routed LoRA experts on the other projections.

    gate_input (mean embedding of the first user turn) --two gates a layer--> expert and weight
    inputs_embeds --Qwen2 decoder, M-RoPE, W x + w^2 s B_e A_e x + (1 - w) s B_g A_g x--> logits

The rest is Qwen2-VL's. Published as one file of base and adapters without any config; Qwen/Qwen2-VL-7B-Instruct supplies
config and tokenizer, and without a config.json its values are taken. Sources: MetabrainAGI/Awaker at 08c4796 (README.md,
Awaker2.5-VL/peft, Awaker2.5-VL/transformers).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.families.awaker2_5_vl import weights
from export.families.config.documents import read_optional
from export.families.config.section import Section
from export.families.config.settings import CLIPS
from export.families.config.stored import stored_size
from export.families.qwen2_vl.family import FAMILY as BASE
from export.families.qwen2_vl.family import Qwen2VL
from export.modules.decoders.specs import RoutedLora
from export.source.tensor_source import TensorSource
from export.specs import ModelSpec
from runtime_py.errors import CheckpointError

MOE, MOE_FILE = "moe", "moe_config.json"
MOE_CONFIG = {"r": 256, "lora_alpha": 512, "num_experts": 4}
"""Adapter settings from upstream's README; a moe_config.json beside the weights and tensor shapes come first."""

FIXED: dict[str, tuple[Any, ...]] = {"topk": (1,), "g_enable": (True,), "gates_tmp": (1.0,), "token": (False,)}
"""Values of moe_config.json that the decoder is written for."""

GATE_EPS = 1e-6
"""Of a gate's own RMSNorm: a literal in Awaker2.5-VL/peft/tuners/moe/layer.py, whatever ``rms_norm_eps`` says."""

EXPERT = f"{weights.PREFIX}model.layers.0.self_attn.o_proj"


class Awaker25VL(Qwen2VL):
    """Metabrain's Awaker2.5-VL."""

    tensors = weights.TENSORS

    def recognises(self, config: Mapping[str, Any], folder: Path) -> bool:
        """A Qwen2-VL with routed experts among its tensors, or with their settings beside its config."""
        if config and not super().recognises(config, folder):
            return False
        try:
            return f"{EXPERT}.lora_moe_A.0.weight" in self.open_source(folder, config).infos
        except CheckpointError:  # no weights here, or damaged ones, which whoever opens them says
            return bool(config) and (folder / MOE_FILE).is_file()

    def load_config(self, folder: Path, stated: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """As the base's, whose published config stands in for a missing one, with the adapter's settings."""
        read = super().load_config(folder, stated)
        base = {} if (folder / "config.json").is_file() else BASE.published_config("", "full")
        return base | read | {MOE: read_optional(folder / MOE_FILE)}

    def config_files(self, config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        own = {key: value for key, value in config.items() if key != MOE}
        return super().config_files(own) | ({MOE_FILE: config[MOE]} if config.get(MOE) else {})

    def spec(self, config: Mapping[str, Any], source: TensorSource) -> ModelSpec:
        base = super().spec({**config, CLIPS: {}}, source)  # the published code prepares frames as pictures
        moe = Section(config).section(MOE, MOE_FILE).over(MOE_CONFIG)
        moe.only(FIXED)
        rank = stored_size(source, f"{EXPERT}.lora_moe_A.0.weight", 0) or moe.integer("r", 1, 1 << 14)
        experts = stored_size(source, f"{EXPERT}.w_gate.weight", 0) or moe.integer("num_experts", 1, 256)
        scale = moe.number("lora_alpha", 1e-6, 1e6) / rank
        return replace(
            base,
            variant="Awaker2.5-VL",
            decoder=replace(base.decoder, adapter=RoutedLora(rank, experts, scale, GATE_EPS)),
            runtime={"routed": True, **base.runtime},
            facts={"routed_experts": True, "lora_rank": rank, "lora_scale": scale},
        )

    def open_source(self, folder: Path, stated: Mapping[str, Any] | None = None) -> TensorSource:
        """As published: under PEFT's names, with adapters."""
        from export.source.checkpoint import open_checkpoint

        return open_checkpoint(folder, adapters=True)


FAMILY = Awaker25VL()
