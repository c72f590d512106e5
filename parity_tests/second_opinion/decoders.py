"""Decoders: logits of a drawn prompt of text against a causal language model of transformers.

Low-rank and expert weights that only image rows (WeMM, CogVLM2) or routed requests use are not part of it; XVERSE-V's
adapters, which hold for all rows, are folded in. Published names are turned into transformers' by rules that stand here
alone. MiniCPM's scaled residual stream is Granite's: its multipliers are taken from the keys of config.json that MiniCPM's
published class reads (``scale_emb``, ``scale_depth``, ``dim_model_base``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from parity_tests.judging.metrics import Kind
from parity_tests.second_opinion.opinion import Finding, Part
from parity_tests.second_opinion.subject import NOT_OF_A_DECODER, Subject, configured, loaded
from runtime_py.contracts import DECODER
from runtime_py.generation.session import Limits, Session

if TYPE_CHECKING:
    from torch import Tensor

Values = dict[str, Any]
State = dict[str, "Tensor"]

FAINT = 1e-2

COGVLM_THETA = 500000.0
"""A literal of modeling_cogvlm.py (RotaryEmbedding), which its config.json does not hold."""


@dataclass(frozen=True)
class Translation:
    """A published decoder in transformers' words.

    Attributes:
        library: the configuration class without ``Config`` and the model class without ``ForCausalLM``.
        values: what the configuration class is given, from the checkpoint's JSON files.
        prefix: of the decoder's tensors.
        state: its tensors by transformers' names, of the first blocks.
        stored_frequencies: the published code reads the rotary frequencies that the checkpoint holds, rounded to bfloat16.
    """

    library: str
    values: Callable[[Subject], Values]
    prefix: str
    state: Callable[[Subject, int], State]
    stored_frequencies: bool = False


def examine(translation: Translation) -> Callable[[Subject], Iterator[Finding]]:
    """What asks both sides for the logits of a drawn prompt."""

    def ask(subject: Subject) -> Iterator[Finding]:
        ids = subject.drawn_ids()
        model, session, of = both_sides(subject, translation, len(ids[0]))
        yield from text_findings(model, session, ids, of)

    return ask


def both_sides(subject: Subject, translation: Translation, context: int) -> tuple[Any, Session, str]:
    """transformers' model, ours of as many positions, and which of the layers both have where that is not all."""
    import transformers

    kind = getattr(transformers, f"{translation.library}Config")
    config = configured(lambda: kind.from_dict(translation.values(subject)), kind.__name__)
    whole = int(config.num_hidden_layers)
    config.num_hidden_layers = blocks = subject.blocks_that_fit(translation.prefix, whole)
    config._attn_implementation = "eager"
    session = Session(subject.backend(subject.with_layers(blocks)), subject.processor, Limits(context, context))
    model: Any = loaded(
        getattr(transformers, f"{translation.library}ForCausalLM")(config), translation.state(subject, blocks)
    )
    if translation.stored_frequencies:
        for name in [name for name in subject.names() if name.endswith("rotary_emb.inv_freq")][:1]:
            model.model.rotary_emb.inv_freq = subject.read(name)
    return model, session, "" if blocks == whole else f", {blocks} of {whole} layers"


def text_findings(model: Any, session: Session, ids: np.ndarray, of: str) -> Iterator[Finding]:
    """Both sides' logits of text; once more with embeddings so small that the eps of the first norm outweighs them.

    The latter are of a kind of their own: rounding grows where nothing but eps is left to divide by.
    """
    import torch

    layout = session.processor.layout(ids, [])
    whole = session.merge(layout, [])
    with torch.inference_mode():
        embeds = model.get_input_embeddings()(torch.from_numpy(ids))
        for name, share, kind in (("text", 1.0, Kind.LOGITS), ("faint text", FAINT, Kind.PROMPT_LOGITS)):
            theirs = model(inputs_embeds=embeds * share).logits if share != 1.0 else model(torch.from_numpy(ids)).logits
            ours = session.prefill(whole * np.float32(share), layout, "all")
            session.reset()
            yield Finding(f"logits of {name}{of}", kind, theirs.float().numpy(), ours)


def language(values: Mapping[str, Any]) -> Values:
    """The decoder's part of config.json, where it is one, without what is another part's."""
    inner = next((values[key] for key in ("text_config", "llm_config", "language_config") if values.get(key)), values)
    return {key: value for key, value in inner.items() if key not in NOT_OF_A_DECODER and value is not None}


def _own(subject: Subject) -> Values:
    return language(subject.document("config.json"))


def _minicpm(subject: Subject) -> Values:
    values = _own(subject)
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    return values | {
        "embedding_multiplier": values.get("scale_emb", 1),
        "residual_multiplier": values.get("scale_depth", 1) / math.sqrt(values["num_hidden_layers"]),
        "logits_scaling": hidden / values.get("dim_model_base", 1),
        "attention_multiplier": (hidden / heads) ** -0.5,
    }


def _omnilmm(subject: Subject) -> Values:
    """chat.py grows the embedding table after config.json was written."""
    return _own(subject) | {"vocab_size": subject.shape("model.embed_tokens.weight")[0]}


def _xverse_folder(subject: Subject) -> str:
    return str(subject.document("config.json").get("llama_model") or "xverse-llm")


def _xverse(subject: Subject) -> Values:
    values = language(subject.document(f"{_xverse_folder(subject)}/config.json"))
    return values | {"vocab_size": subject.shape("llm/model.embed_tokens.weight")[0]}


def _cogvlm(subject: Subject) -> Values:
    values = _own(subject)
    return values | {"num_key_value_heads": values["num_multi_query_heads"], "rope_theta": COGVLM_THETA}


def renamed(prefix: str, without: tuple[str, ...] = ("rotary_emb.inv_freq",)) -> Callable[[Subject, int], State]:
    """Tensors that are called as transformers calls them, behind a prefix."""

    def state(subject: Subject, blocks: int) -> State:
        names = [name for name in subject.names(prefix, blocks) if not any(part in name for part in without)]
        return untied(subject, {name.removeprefix(prefix): subject.read(name) for name in names})

    return state


def untied(subject: Subject, state: State) -> State:
    """With a head where the checkpoint's is its embedding table."""
    if "lm_head.weight" not in state:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state


INTERNLM = {
    "model.tok_embeddings": "model.embed_tokens",
    "output.weight": "lm_head.weight",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    ".original_linear": "",
}
"""InternLM2's names, as its published class has them, in Llama's words."""


def _internlm_state(subject: Subject, blocks: int) -> State:
    values, state = _own(subject), State()
    heads = values["num_attention_heads"]
    key_heads = values.get("num_key_value_heads") or heads
    for name in subject.names("language_model.", blocks):
        if "Plora" in name or "inv_freq" in name:
            continue
        tensor, plain = subject.read(name), name.removeprefix("language_model.")
        if ".wqkv." in plain:
            grouped = tensor.view(key_heads, heads // key_heads + 2, values["hidden_size"] // heads, -1)
            place = plain.split("attention.wqkv")[0] + "self_attn."
            rows = {"q": grouped[:, :-2], "k": grouped[:, -2], "v": grouped[:, -1]}
            state |= {f"{place}{part}_proj.weight": row.reshape(-1, tensor.shape[-1]) for part, row in rows.items()}
            continue
        for theirs, ours in INTERNLM.items():
            plain = plain.replace(theirs, ours) if theirs != "output.weight" or plain == theirs else plain
        state[plain] = tensor
    return untied(subject, state)


def _xverse_state(subject: Subject, blocks: int) -> State:
    """Every matrix with its adapter: W + (alpha / r) B A."""
    own = subject.document("config.json")
    scale = (own.get("lora_alpha") or 256) / (own.get("lora_r") or 128)
    state = State()
    for name in subject.names("llm/", blocks):
        if "inv_freq" in name:
            continue
        plain, tensor = name.removeprefix("llm/"), subject.read(name)
        stem = f"adapters/llama_model.base_model.model.{plain.removesuffix('.weight')}.lora_A"
        for low in subject.names(stem):
            tensor = tensor + scale * subject.read(low.replace("lora_A", "lora_B")) @ subject.read(low)
        state[plain] = tensor
    return untied(subject, state)


def _cogvlm_state(subject: Subject, blocks: int) -> State:
    """The language experts alone, or the only ones."""
    values, state = _own(subject), State()
    head = values["hidden_size"] // values["num_attention_heads"]
    rows = [head * values[key] for key in ("num_attention_heads", "num_multi_query_heads", "num_multi_query_heads")]
    for name in subject.names("", blocks):
        if "vision" in name or "inv_freq" in name:
            continue
        plain = name.replace("self_attn.language_expert_dense", "self_attn.o_proj").replace("mlp.language_mlp.", "mlp.")
        if plain.endswith("language_expert_query_key_value.weight"):
            place = plain.removesuffix("language_expert_query_key_value.weight")
            parts = zip("qkv", subject.read(name).split(rows), strict=True)
            state |= {f"{place}{part}_proj.weight": tensor for part, tensor in parts}
        else:
            state[plain] = subject.read(name)
    return untied(subject, state)


TRANSLATIONS = {
    "minicpm-v": Translation("Granite", _minicpm, "llm.", renamed("llm.")),
    "minicpm-llama3-v": Translation("Llama", _own, "llm.", renamed("llm.")),
    "omnilmm-12b": Translation(
        "Mistral", _omnilmm, "model.", renamed("", ("inv_freq", "vision_tower", "resampler", "mm_projector"))
    ),
    "wemm": Translation("Llama", _own, "language_model.", _internlm_state),
    "xverse-v": Translation("Llama", _xverse, "llm/", _xverse_state),
    "cogvlm2": Translation("Llama", _cogvlm, "model.", _cogvlm_state, stored_frequencies=True),
}

PART = Part(
    name="decoder",
    stage=DECODER,
    covers="sizes, heads, rotary base, eps, activation, scales, order of weights",
    against={family: f"{translation.library}ForCausalLM" for family, translation in TRANSLATIONS.items()},
    examine={family: examine(translation) for family, translation in TRANSLATIONS.items()},
    lacking={
        "qwen2-vl": "asked as a whole, see part `whole`",
        "awaker2.5-vl": "asked without its experts, see part `whole`",
    },
)
