"""config.json of MiniCPM-V 1.0 and 2.0 at full size, and of a tiny twin with the same keys.

Sources: the 2.0 values from HwwwwwwwH/MiniCPM-V-2 ``config.json``; 1.0 from the constants and shapes of
OpenBMB/mlc-MiniCPM at cd9c26e, with the class defaults of bokesyo/minicpm-v-embedding-model
``configuration_minicpm.py`` where the port is silent.
"""

from __future__ import annotations

from typing import Any

from runtime_py.errors import UsageError

VARIANTS = ("1.0", "2.0")
SIZES = ("full", "tiny")

_COMMON: dict[str, Any] = {
    "architectures": ["MiniCPMV"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_minicpm.MiniCPMVConfig",
        "AutoModel": "modeling_minicpmv.MiniCPMV",
        "AutoModelForCausalLM": "modeling_minicpmv.MiniCPMV",
    },
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.1,
    "mm_use_im_start_end": True,
    "model_type": "minicpmv",
    "patch_size": 14,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "scale_depth": 1.4,
    "scale_emb": 12,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0",
    "use_cache": True,
    "drop_vision_last_layer": True,
    "vision_encoder": "vit_so400m_patch14_siglip_384.webli",
}

_BY_SIZE: dict[str, dict[str, Any]] = {
    "full": {
        "dim_model_base": 256,
        "hidden_size": 2304,
        "image_size": 448,
        "intermediate_size": 5760,
        "max_position_embeddings": 4096,
        "num_attention_heads": 36,
        "num_hidden_layers": 40,
        "num_key_value_heads": 36,
        "query_num": 64,
        "vocab_size": 122753,
    },
    "tiny": {
        "dim_model_base": 64,
        "hidden_size": 256,
        "image_size": 112,
        "intermediate_size": 192,
        "max_position_embeddings": 512,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "query_num": 16,
        "vocab_size": 320,
        "timm_model_args": {
            "depth": 3,
            "embed_dim": 48,
            "img_size": 84,
            "mlp_ratio": 3.7362,
            "num_heads": 3,
            "patch_size": 14,
        },
    },
}


def published_config(variant: str, size: str) -> dict[str, Any]:
    """config.json as published (``full``) or of the same form with small sizes (``tiny``).

    Raises:
        UsageError: no such variant or size.
    """
    if variant not in VARIANTS or size not in SIZES:
        raise UsageError(
            f"MiniCPM-V has no config for variant {variant!r} at size {size!r}",
            f"variant {' or '.join(VARIANTS)}, size {' or '.join(SIZES)}",
            "choose one of these",
        )
    config = {**_COMMON, **_BY_SIZE[size]}
    if variant == "2.0":
        config |= {"slice_mode": True, "max_slice_nums": 9, "scale_resolution": config["image_size"]}
    return dict(sorted(config.items()))
