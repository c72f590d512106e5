"""What transformers.js must know of a package: config.json, and how a picture becomes pixel values.

It opens a model by ``model_type``; `llava` is the one whose pipeline is plain (vision encoder, rows in the place of a token,
a decoder). Source: huggingface/transformers.js, src/configs.js, src/models/llava, src/utils/dtypes.js, model-loader.js.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from export.backends.onnx.consumers.held import picture_mark, placeholder
from export.specs import ModelSpec, SizeRule

DTYPES = {"": "fp32", "_fp16": "fp16", "_int8": "int8", "_q4": "q4", "_q4f16": "q4f16"}
"""Suffix of a graph's name to what transformers.js calls it."""

PROCESSOR = "LlavaProcessor"


def tool_config(
    spec: ModelSpec, stated: Mapping[str, Any], graphs: Mapping[str, str], cache: str, width: int
) -> dict[str, Any]:
    """config.json: what the checkpoint said, under the type that tools know, which keeps its own.

    Args:
        stated: the checkpoint's config.json.
        graphs: stem (``vision_encoder``) to the path of its graph in the package, whose weights lie beside it.
        cache, width: dtype of the key/value cache, and how wide a head is in it.
    """
    decoder = spec.decoder
    dtypes = {stem: DTYPES[PurePosixPath(path).stem.removeprefix(stem)] for stem, path in graphs.items()}
    pieces = {stem: 2 if stem == "vision_encoder" else 1 for stem in graphs}
    of_the_checkpoint = {key: stated[key] for key in ("model_type", "architectures") if key in stated}
    return {
        **stated,
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "checkpoint": of_the_checkpoint,
        "image_token_index": placeholder(spec),
        "text_config": {
            "model_type": "llama",
            "hidden_size": decoder.hidden,
            "intermediate_size": decoder.mlp_width,
            "num_hidden_layers": decoder.layers,
            "num_attention_heads": decoder.heads,
            "num_key_value_heads": decoder.kv_heads,
            "head_dim": width,
            "vocab_size": decoder.vocabulary,
            "max_position_embeddings": decoder.max_positions,
        },
        "transformers.js_config": {
            "dtype": dtypes,
            **({"kv_cache_dtype": dict.fromkeys(("q4f16", "fp16"), cache)} if cache == "float16" else {}),
            "use_external_data_format": pieces,
        },
    }


def picture_files(spec: ModelSpec) -> dict[str, dict[str, Any]]:
    """preprocessor_config.json and processor_config.json by name; {} for a model whose pictures become tiles or slices."""
    image, mark = spec.image, picture_mark(spec)
    if image.rule is not SizeRule.SQUARE or mark is None:
        return {}
    side = {"height": image.overview, "width": image.overview}
    pictures = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": PROCESSOR,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": side,
        "resample": 3,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.deviation),
    }
    # the processor counts rows as patches of the square and some more: here one patch, and the other rows
    rows = {"image_token": mark, "patch_size": image.overview, "num_additional_image_tokens": spec.image_rows - 1}
    return {"preprocessor_config.json": pictures, "processor_config.json": {"processor_class": PROCESSOR, **rows}}
