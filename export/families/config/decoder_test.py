"""Decoders and rotary positions in both layouts, held against the configuration classes of transformers."""

from __future__ import annotations

from typing import Any

import pytest

from export.families.base import Family
from export.families.config.decoder import decoder_of, language_of
from export.families.config.section import Section
from export.families.registry import families
from export.source.tensor_source import EmptySource
from export.specs import DecoderSpec
from runtime_py.errors import CheckpointError, EdgeproofError, UnsupportedModelError

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "vocab_size": 99}
DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 512}
ALL = pytest.mark.parametrize("family", families().values(), ids=lambda family: family.name)


def decoder(changes: dict[str, Any], axes: int = 1) -> DecoderSpec:
    return decoder_of(language_of(Section({**SIZES, **changes})).over(DEFAULTS), axes=axes)


def spec_with(family: Family, changes: dict[str, Any], dropped: tuple[str, ...] = ()) -> DecoderSpec:
    """The family's tiny checkpoint with keys of its decoder changed."""
    config = family.published_config("", "tiny")
    text = {**config.get("text_config", {}), **changes} if "text_config" in config else {**config, **changes}
    text = {key: value for key, value in text.items() if key not in dropped}
    return family.spec({**config, "text_config": text} if "text_config" in config else text, EmptySource()).decoder


def rope_keys(family: Family, kind: str, theta: float) -> dict[str, Any]:
    """What transformers 5 writes: the object it calls rope_parameters."""
    mrope = {"mrope_section": [4, 6, 6]} if "qwen2" in str(family.published_config("", "tiny").get("model_type")) else {}
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **mrope}}


@ALL
def test_the_rotary_base_is_read_from_rope_parameters(family: Family) -> None:
    dropped = ("rope_theta", "rope_scaling")
    own = float(family.published_code().class_defaults["rope_theta"])
    assert spec_with(family, rope_keys(family, "default", own), dropped).rope.theta == own
    try:
        assert spec_with(family, rope_keys(family, "default", 3e6), dropped).rope.theta == 3e6
    except UnsupportedModelError as refusal:  # a literal of the published code, which no file can change
        assert "rope_theta" in refusal.expected and f"{own:.0f}" in refusal.expected


@ALL
@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3", "longrope", "su", "proportional"])
def test_scaled_positions_are_refused_by_name(family: Family, kind: str) -> None:
    mrope = rope_keys(family, kind, 500000.0)["rope_parameters"]
    for changes in ({"rope_scaling": {**mrope, "type": kind, "factor": 4.0}}, {"rope_parameters": {**mrope, "factor": 4.0}}):
        with pytest.raises(UnsupportedModelError, match=kind):
            spec_with(family, changes, ("rope_scaling",) if "rope_parameters" in changes else ())


@ALL
def test_stored_integers_are_refused_by_name(family: Family) -> None:
    with pytest.raises(UnsupportedModelError, match="awq"):
        spec_with(family, {"quantization_config": {"quant_method": "awq", "bits": 4}})


@ALL
def test_what_bitsandbytes_was_asked_for_changes_no_size(family: Family) -> None:
    asked = {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": False, "bnb_4bit_quant_type": "fp4"}
    others: list[dict[str, Any]] = [{}, {"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}]
    for other in others:
        assert spec_with(family, {"quantization_config": {**asked, **other}}) == spec_with(family, {})
    older = {key: value for key, value in asked.items() if key != "quant_method"}
    assert spec_with(family, {"quantization_config": {**older, "load_in_4bit": True}}) == spec_with(family, {})


@ALL
@pytest.mark.parametrize("method", ["gptq", "awq", "aqlm", "hqq", "fp8", "compressed-tensors", "torchao", 7, ["x"]])
def test_other_methods_are_refused_by_name(family: Family, method: Any) -> None:
    """Whatever else their config says."""
    own: list[Any] = [{"quant_method": method}, {"quant_method": method, "load_in_4bit": True, "bits": 4}]
    for config in own:
        with pytest.raises(UnsupportedModelError, match="which is not read") as told:
            spec_with(family, {"quantization_config": config})
        assert (repr(method) if isinstance(method, str) else "an unnamed method") in told.value.what
    unnamed: list[Any] = [{"bits": 4}, {"quant_method": None, "bits": 4}, "gptq", [1]]
    for config in unnamed:
        with pytest.raises(UnsupportedModelError, match="an unnamed method"):
            spec_with(family, {"quantization_config": config})


@ALL
@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 7, "num_attention_heads": 3},
        {"num_hidden_layers": 100_000},
        {"num_hidden_layers": 10**12},
        {"num_hidden_layers": 0},
        {"rms_norm_eps": float("nan")},
        {"rope_theta": 0},
        {"max_position_embeddings": 10**12},
        {"vocab_size": "many"},
        {"intermediate_size": None},
        {"eos_token_id": "</s>"},
        {"tie_word_embeddings": "no"},
        {"layer_types": ["full_attention"]},
        {"layer_types": "full_attention"},
    ],
)
def test_nonsense_is_one_error(family: Family, changes: dict[str, Any]) -> None:
    if changes.keys() <= family.published_code().class_defaults.keys() and set(changes.values()) == {None}:
        pytest.skip("null says what the published class has there")
    with pytest.raises(CheckpointError) as told:
        spec_with(family, changes)
    assert any(key in told.value.what for key in changes), told.value.what


@ALL
@pytest.mark.parametrize(
    "changes", [{"hidden_act": "gelu"}, {"mlp_bias": True}, {"layer_types": ["full_attention", "linear_attention"]}]
)
def test_what_is_not_built_is_refused_by_name(family: Family, changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match=next(iter(changes))):
        spec_with(family, changes)


@pytest.mark.parametrize(
    ("key", "built", "other"),
    [
        *((key, False, True) for key in ("attention_bias", "mlp_bias", "bias", "use_qk_norm", "qk_norm")),
        *((key, 1, 8) for key in ("num_experts", "num_local_experts")),
        *((key, None, 30.0) for key in ("attn_logit_softcapping", "final_logit_softcapping", "clip_qkv")),
        *((key, 1.0, 0.5) for key in ("logit_scale", "logits_scaling", "embedding_multiplier", "residual_multiplier")),
        ("hidden_act", "silu", "relu"),
    ],
)
def test_what_other_decoders_compute_is_refused_and_the_built_value_is_not(key: str, built: Any, other: Any) -> None:
    assert decoder({key: built}) == decoder({})
    with pytest.raises(UnsupportedModelError, match=key):
        decoder({key: other})


def test_heads_of_an_odd_width_have_no_halves_to_turn() -> None:
    assert decoder({"num_attention_heads": 8}).head_dim == 6
    for heads in (16, 5):
        with pytest.raises(CheckpointError, match="num_attention_heads"):
            decoder({"num_attention_heads": heads})


@ALL
def test_sliding_windows_bound_the_positions(family: Family) -> None:
    assert spec_with(family, {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 0}).max_positions == 64
    all_positions = spec_with(family, {}).max_positions
    assert spec_with(family, {"sliding_window": 64, "use_sliding_window": False}).max_positions == all_positions > 64
    kinds = ["full_attention", "sliding_attention"]
    layered = {"sliding_window": 64, "use_sliding_window": True, "layer_types": kinds}
    assert spec_with(family, layered).max_positions == 64
    assert spec_with(family, {**layered, "layer_types": kinds[:1] * 2}).max_positions == all_positions


def test_dynamic_scaling_is_the_plain_form_within_the_trained_positions() -> None:
    scaled = decoder({"rope_scaling": {"type": "dynamic", "factor": 2.0}})
    assert scaled == decoder({})
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        **{key: value for key, value in SIZES.items()},
        max_position_embeddings=512,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS["dynamic"](config, "cpu", seq_len=512)
    assert factor == 1.0
    expected = [10000.0 ** (-2 * index / 12) for index in range(6)]
    assert frequencies.tolist() == pytest.approx(expected, rel=1e-6)


def test_layers_of_different_kinds_of_positions_are_refused() -> None:
    plain, other = {"rope_type": "default", "rope_theta": 5e5}, {"rope_type": "default", "rope_theta": 1e4}
    assert decoder({"rope_parameters": {"full_attention": plain, "sliding_attention": plain}}).rope.theta == 5e5
    with pytest.raises(UnsupportedModelError, match="sliding_attention"):
        decoder({"rope_parameters": {"full_attention": plain, "sliding_attention": other}})


@pytest.mark.parametrize("kind", ["LlamaConfig", "MistralConfig"])
@pytest.mark.parametrize("new", [True, False])
def test_what_transformers_writes_is_read_as_transformers_reads_it(kind: str, new: bool) -> None:
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, kind)(
        **SIZES, num_key_value_heads=2, rms_norm_eps=1e-5, rope_parameters={"rope_theta": 3e5}
    )
    written = made.to_dict() if new else {**SIZES, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 3e5}
    window = made.to_dict().get("sliding_window")
    decoder = decoder_of(Section(written).over({**DEFAULTS, "max_position_embeddings": made.max_position_embeddings}))
    assert (decoder.rope.theta, decoder.norm_eps, decoder.kv_heads) == (made.rope_parameters["rope_theta"], 1e-5, 2)
    assert decoder.max_positions == min(made.max_position_embeddings, window if new and window else 1 << 30)


def test_a_windows_null_is_none_and_its_absence_the_class_default() -> None:
    """Mistral's class has a window of 4096, which null switches off (transformers, models/mistral)."""
    mistral = pytest.importorskip("transformers").MistralConfig
    family = families()["omnilmm-12b"]
    for changes in ({}, {"sliding_window": None}, {"sliding_window": 100}):
        expected = mistral(**changes).sliding_window or 8192
        spec = spec_with(family, {**changes, "max_position_embeddings": 8192}, () if changes else ("sliding_window",))
        assert spec.max_positions == expected
    bare = family.published_code().class_defaults
    assert all(
        getattr(mistral(), key) == bare[key] for key in ("num_key_value_heads", "rms_norm_eps", "max_position_embeddings")
    )


@pytest.mark.parametrize("kind", ["LlamaConfig", "Qwen2VLTextConfig"])
def test_null_key_heads_are_as_many_as_heads(kind: str) -> None:
    import transformers

    theirs = getattr(transformers, kind)(hidden_size=48, num_attention_heads=4, num_key_value_heads=None)
    text = Section({**SIZES, "num_key_value_heads": None}).over({**DEFAULTS, "num_key_value_heads": 2})
    assert decoder_of(text).kv_heads == theirs.num_key_value_heads == 4


@ALL
def test_null_says_what_a_missing_key_says(family: Family) -> None:
    nulls = dict.fromkeys(("rope_scaling", "rope_parameters", "quantization_config", "layer_types", "head_dim"))
    if "qwen2" in str(family.published_config("", "tiny").get("model_type")):
        del nulls["rope_scaling"]
    assert spec_with(family, nulls) == spec_with(family, {})
    if "hidden_size" in family.published_code().class_defaults:
        return
    with pytest.raises(EdgeproofError, match="hidden_size is missing"):
        spec_with(family, {"hidden_size": None})


@ALL
def test_the_decoders_part_may_stand_in_text_config(family: Family) -> None:
    config = family.published_config("", "tiny")
    if "text_config" in config:
        pytest.skip("it stands there as published")
    own = {
        key: config[key]
        for key in config
        if key not in ("vision_config", "added_tokens", "moe", "architectures", "model_type")
    }
    moved = {**{key: config[key] for key in config if key not in own}, "text_config": own}
    moved |= {key: own[key] for key in ("timm_model_args", "slice_config") if key in own}
    assert family.spec(moved, EmptySource()).decoder == family.spec(config, EmptySource()).decoder
