"""Qwen2-VL as a whole: picture and text to logits, each side with its own pixels, patches, positions and tower.

Awaker2.5-VL is asked as the Qwen2-VL that it is without its adapters, on both sides; what its routed experts add has no
second opinion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from parity_tests.judging.metrics import Kind
from parity_tests.second_opinion.decoders import text_findings
from parity_tests.second_opinion.image_processors import qwen2_processor
from parity_tests.second_opinion.opinion import Finding, NotComparable, Part
from parity_tests.second_opinion.subject import Subject, configured, loaded, pictures
from runtime_py.contracts import DECODER
from runtime_py.generation.session import Limits, Session
from runtime_py.preprocess import qwen2_vl

if TYPE_CHECKING:
    from torch import Tensor

    from export.quantisation.codes import WeightProvider
    from export.specs import ModelSpec

ADAPTERS = ("lora_", ".w_gate.", "_proj.ln.")


def examine(prefix: str) -> Callable[[Subject], Iterator[Finding]]:
    """What asks both sides; ``prefix`` stands before every published name."""

    def ask(subject: Subject) -> Iterator[Finding]:
        import torch

        model, session, of = both_sides(subject, prefix)
        yield from text_findings(model, session, subject.drawn_ids(), of)
        make_pixels = qwen2_processor(subject)
        for name, picture in pictures().items():
            inputs, features = session.encode_images([picture])
            ids = with_picture(model.config, subject.drawn_ids()[0], inputs[0].rows)
            layout = session.processor.layout(ids, inputs)
            ours = session.prefill(session.merge(layout, features), layout, "all")
            made = their_inputs(model.config, ids, make_pixels(images=[picture], return_tensors="pt"))
            with torch.inference_mode():
                theirs = model(**made).logits.float().numpy()
            session.reset()
            shown = layout.image_rows
            yield Finding(f"logits about {name} picture{of}", Kind.LOGITS, theirs[:, ~shown], ours[:, ~shown])
            yield Finding(f"rows of {name} picture{of}", Kind.PICTURE_LOGITS, theirs[:, shown], ours[:, shown])

    return ask


def both_sides(subject: Subject, prefix: str) -> tuple[Any, Session, str]:
    """transformers' model, ours, and which of the layers both have where that is not all.

    Raises:
        NotComparable: the other side has nothing to read its sizes from.
    """
    import transformers

    if not subject.document("config.json"):
        raise NotComparable("the checkpoint has no config.json for the other side to read")
    config = _config(subject)
    blocks = min(
        subject.blocks_that_fit(prefix, max(config.text_config.num_hidden_layers, config.vision_config.depth)),
        config.text_config.num_hidden_layers,
    )
    whole = config.text_config.num_hidden_layers, config.vision_config.depth
    config.text_config.num_hidden_layers = blocks
    config.vision_config.depth = min(blocks, whole[1])
    spec, weights = _ours(subject, prefix, blocks, config.vision_config.depth)
    processor = qwen2_vl.Processor(spec.runtime, None)
    session = Session(subject.backend(spec, weights), processor, Limits(1 << 14, 1 << 14))
    model = loaded(transformers.Qwen2VLForConditionalGeneration(config), _state(subject, prefix, blocks))
    return model, session, "" if blocks == whole[0] else f", {blocks} of {whole[0]} layers"


def with_picture(config: Any, words: np.ndarray, rows: int) -> np.ndarray:
    """int64 (1, tokens): words (tokens,) with a picture of so many rows behind the seventh."""
    marks = [[config.vision_start_token_id], [config.image_token_id] * rows, [config.vision_end_token_id]]
    return np.concatenate([words[:7], *marks, words[7:]])[None].astype(np.int64)


def their_inputs(config: Any, ids: np.ndarray, pixels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What transformers' model is called with for ids (1, tokens) and what its image processor made."""
    import torch

    kinds = torch.from_numpy((ids == config.image_token_id).astype(np.int64))
    return {"input_ids": torch.from_numpy(ids), "mm_token_type_ids": kinds, **pixels}


def _config(subject: Subject) -> Any:
    """transformers' own reading of config.json."""
    from transformers import Qwen2VLConfig

    stated = subject.document("config.json")
    tower = dict(stated.get("vision_config") or {})
    ratio = tower.pop("mlp_ratio", 4)
    config = configured(lambda: Qwen2VLConfig.from_dict({**stated, "vision_config": tower}), "Qwen2VLConfig")
    config.vision_config.__dict__["mlp_ratio"] = ratio  # a fraction in small checkpoints, where the class takes integers
    config._attn_implementation = "eager"
    return config


def _ours(subject: Subject, prefix: str, layers: int, depth: int) -> tuple[ModelSpec, WeightProvider]:
    """Our model with fewer layers and without adapters, and what its parameters are made of."""
    from export.families.qwen2_vl.weights import image_rules
    from export.modules.decoders.llama_weights import llama_rules
    from export.source.weight_map import WeightMap

    whole = subject.spec
    plain = replace(
        whole,
        vision=replace(whole.vision, layers=depth),
        decoder=replace(whole.decoder, adapter=None, layers=layers),
        runtime={key: value for key, value in whole.runtime.items() if key != "routed"},
    )
    if not prefix:
        return plain, subject.weights
    assert subject.opened.weights is not None
    rules = [*image_rules(plain, prefix), *llama_rules(plain.decoder, f"{prefix}model.", f"{prefix}lm_head.weight")]
    return plain, WeightMap(rules, subject.opened.weights.source, ignored=("*",))


def _state(subject: Subject, prefix: str, blocks: int) -> dict[str, Tensor]:
    """Published names (transformers 4.45) in the words of transformers 5."""
    state: dict[str, Tensor] = {}
    for name in subject.names(prefix, blocks):
        plain = name.removeprefix(prefix)
        if any(part in plain for part in ADAPTERS):
            continue
        if plain.startswith("model.") and not plain.startswith(("model.visual.", "model.language_model.")):
            plain = "model.language_model." + plain.removeprefix("model.")
        elif plain.startswith("visual."):
            plain = f"model.{plain}"
        state[plain] = subject.read(name)
    if "lm_head.weight" not in state:
        state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    return state


PART = Part(
    name="whole",
    stage=DECODER,
    covers="everything between a picture and the logits, positions on three axes included",
    against=dict.fromkeys(("qwen2-vl", "awaker2.5-vl"), "Qwen2VLForConditionalGeneration"),
    examine={"qwen2-vl": examine(""), "awaker2.5-vl": examine("base_model.model.")},
    lacking=dict.fromkeys(
        ("minicpm-v", "minicpm-llama3-v", "omnilmm-12b", "wemm", "xverse-v", "cogvlm2"),
        "transformers has parts of this family, not the whole",
    ),
)
