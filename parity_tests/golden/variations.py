"""Random models of a golden's shape: other sizes, head groupings, layer counts and pictures, drawn from a seed.

Each becomes a checkpoint in the family's published layout (export.checkpoint.synthesize), is exported, and answers
random prompts about
random pictures beside the PyTorch reference, as a user's checkpoint would. Weights that a checkpoint must have in some form
(square query grids, head widths of 128 in a resampler) keep that form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.checkpoint.synthesize import SynthesisRequest, synthesize
from export.modules.vision.specs import RotaryVisionSpec
from parity_tests.check.candidate import Candidate, open_candidate
from parity_tests.check.package_questions import stand_in
from parity_tests.judging.compare import compare_recordings
from parity_tests.judging.judge import Judgement, judge
from parity_tests.judging.probes import Question, record
from parity_tests.judging.results import Comparison, Run
from parity_tests.judging.standards import Standard
from parity_tests.reference.checkpoint_side import open_checkpoint, reference
from runtime_py.errors import ImageError
from runtime_py.model import open_processor
from runtime_py.package import read
from runtime_py.preprocess.base import Message, Processor

Draw = np.random.Generator
Config = dict[str, Any]
STEPS = 6

EXTREMES = ((1, 1), (1, 400), (700, 2), (60, 700))
"""Heights and widths of pictures that Qwen2-VL and Awaker alone refuse, those below a patch."""

WIDE_RANK = 4
"""A random adapter of fewer rows, scaled as a wide one, drowns the layer it is added to: attention saturates, and PyTorch
itself gives logits 2e-5 apart for another prefill chunk."""


@dataclass(frozen=True)
class Variation:
    """One random model: what `synthesize` writes, and the limits it is exported with."""

    family: str
    variant: str
    seed: int
    overrides: Mapping[str, Any]
    prefill_chunk: int


def _heads(draw: Draw, widths: tuple[int, ...] = (8, 10, 12, 16, 20, 32)) -> Config:
    """Heads, key/value heads that divide them, and the hidden width; one key/value head is as likely as any."""
    heads = int(draw.choice([2, 3, 4, 6, 8]))
    shared = [count for count in range(1, heads + 1) if heads % count == 0]
    width = int(draw.choice(widths))
    return {"hidden": heads * width, "heads": heads, "kv": int(draw.choice(shared)), "head_dim": width}


def _grouped(draw: Draw) -> Config:
    """As `_heads`, for hidden widths that a resampler with heads of 128 takes."""
    hidden = int(draw.choice([128, 256, 384]))
    heads = int(draw.choice([count for count in (2, 4, 8, 16) if hidden // count <= 64]))
    shared = [count for count in range(1, heads + 1) if heads % count == 0]
    return {"hidden": hidden, "heads": heads, "kv": int(draw.choice(shared)), "head_dim": hidden // heads}


def _number(draw: Draw, low: int, high: int, step: int = 1) -> int:
    return int(draw.integers(low // step, high // step + 1)) * step


def _decoder(draw: Draw, shape: Config) -> Config:
    return {
        "hidden_size": shape["hidden"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv"],
        "num_hidden_layers": _number(draw, 1, 4),
        "intermediate_size": _number(draw, 33, 200),
    }


def _tower(draw: Draw, patch: int) -> Config:
    heads = _number(draw, 1, 4)
    return {
        "depth": _number(draw, 2, 4),
        "embed_dim": heads * int(draw.choice([8, 12, 16, 20])),
        "num_heads": heads,
        "mlp_ratio": float(draw.choice([2.0, 3.7362, 4.0])),
        "patch_size": patch,
        "img_size": patch * _number(draw, 3, 7),
    }


def _resampled(draw: Draw, queries: str) -> Config:
    patch = int(draw.choice([4, 7, 14]))
    config = _decoder(draw, _grouped(draw)) | {queries: _number(draw, 2, 5) ** 2}
    return config | {"timm_model_args": _tower(draw, patch), "image_size": patch * _number(draw, 3, 9)}


def _minicpm_v(draw: Draw, variant: str) -> Config:
    config = _resampled(draw, "query_num") | {"dim_model_base": _number(draw, 16, 128), "patch_size": 0}
    config["patch_size"] = config["timm_model_args"]["patch_size"]
    if variant == "2.0":
        config |= {"scale_resolution": config["image_size"], "max_slice_nums": _number(draw, 2, 9)}
    return config


def _omnilmm(draw: Draw, variant: str) -> Config:
    return _resampled(draw, "num_query")


def _wemm(draw: Draw, variant: str) -> Config:
    shape, heads, patch = _heads(draw), _number(draw, 1, 4), int(draw.choice([6, 14]))
    side, kernel = _number(draw, 6, 12), _number(draw, 2, 4)
    width = heads * int(draw.choice([8, 12, 16]))
    return {
        "text_config": _decoder(draw, shape) | {"rope_theta": float(draw.choice([1e4, 1e6]))},
        "vision_config": {
            "hidden_size": width,
            "intermediate_size": _number(draw, 33, 100),
            "num_hidden_layers": _number(draw, 1, 3),
            "num_attention_heads": heads,
            "image_size": patch * side,
            "patch_size": patch,
        },
        "downsampler_config": {"kernel_size": kernel, "stride": kernel},
        "image_processor": {"size": {"shortest_edge": 2 * patch + 1, "longest_edge": patch * side - 1}},
    }


def _xverse(draw: Draw, variant: str) -> Config:
    text = _decoder(draw, _heads(draw))
    if draw.random() < 0.5:
        text["num_key_value_heads"] = text["num_attention_heads"]
    heads, patch, rank = _number(draw, 1, 4), int(draw.choice([7, 14])), _number(draw, 1, 9)
    vision = {
        "hidden_size": heads * int(draw.choice([8, 12, 16])),
        "intermediate_size": _number(draw, 33, 100),
        "num_hidden_layers": _number(draw, 2, 4),
        "num_attention_heads": heads,
        "patch_size": patch,
        "image_size": patch * _number(draw, 2, 5),
    }
    alpha = 2 * rank if rank >= WIDE_RANK else rank / 4
    return {"text_config": text, "vision_config": vision, "lora_r": rank, "lora_alpha": alpha}


def _qwen2_vl(draw: Draw, variant: str) -> Config:
    shape = _heads(draw)
    half = shape["head_dim"] // 2
    first = _number(draw, 1, max(1, half - 3))
    second = _number(draw, 1, max(1, half - first - 1))
    heads, patch = _number(draw, 1, 3), int(draw.choice([6, 14]))
    return _decoder(draw, shape) | {
        "rope_scaling": {"mrope_section": [first, second, half - first - second]},
        "vision_config": {
            "depth": _number(draw, 1, 3),
            "embed_dim": heads * int(draw.choice([8, 16, 24])),
            "num_heads": heads,
            "mlp_ratio": int(draw.choice([2, 4])),
            "hidden_size": shape["hidden"],
            "patch_size": patch,
            "spatial_patch_size": patch,
        },
        "preprocessor": {"min_pixels": 4 * (2 * patch) ** 2, "max_pixels": 40 * (2 * patch) ** 2},
    }


def _awaker(draw: Draw, variant: str) -> Config:
    rank = _number(draw, 2, 9)
    return _qwen2_vl(draw, variant) | {"moe": {"r": rank, "lora_alpha": 2 * rank, "num_experts": _number(draw, 2, 5)}}


def _cogvlm2(draw: Draw, variant: str) -> Config:
    text = _decoder(draw, _heads(draw))
    grid, patch, heads = _number(draw, 4, 10, 2), int(draw.choice([6, 14])), _number(draw, 1, 4)
    text["num_multi_query_heads"] = text.pop("num_key_value_heads")
    return text | {
        "vision_config": {
            "hidden_size": heads * int(draw.choice([8, 12, 16])),
            "image_size": grid * patch,
            "intermediate_size": _number(draw, 33, 100),
            "num_heads": heads,
            "num_hidden_layers": _number(draw, 1, 4),
            "num_positions": grid * grid + 1,
            "patch_size": patch,
        }
    }


DRAWN: Mapping[str, Callable[[Draw, str], Config]] = {
    "minicpm-v": _minicpm_v,
    "omnilmm-12b": _omnilmm,
    "wemm": _wemm,
    "xverse-v": _xverse,
    "awaker2.5-vl": _awaker,
    "qwen2-vl": _qwen2_vl,
    "cogvlm2": _cogvlm2,
}
"""Family to what a random model of it has instead of the tiny config's values."""


def vary(family: str, variant: str, seed: int) -> Variation:
    """The random model of a seed."""
    draw = np.random.default_rng([seed, len(family), len(variant)])
    overrides = DRAWN[family](draw, variant)
    return Variation(family, variant, seed, overrides, int(draw.choice([5, 16, 64, 512])))


def write(variation: Variation, folder: Path) -> Path:
    """Its checkpoint, float32."""
    overrides = {**variation.overrides, "max_position_embeddings": 4096}
    for inner in ("text_config",):
        if inner in overrides:
            overrides[inner] = {**overrides[inner], "max_position_embeddings": 4096}
    request = SynthesisRequest(
        variation.family, "tiny", folder, variation.variant, "float32", variation.seed, overrides=overrides
    )
    return synthesize(request).folder


def questions(processor: Processor, seed: int, most: int) -> list[Question]:
    """Prompts with no, one and up to ``most`` pictures of random sizes and aspects, and one with an extreme picture."""
    draw = np.random.default_rng([seed, 1])
    asked = []
    for count in sorted({0, 1, most}):
        sides = np.exp(draw.uniform(np.log(30), np.log(260), (count, 2))).astype(int).tolist()
        asked.append(_question(processor, draw, f"{count}-pictures", sides))
    try:
        asked.append(_question(processor, draw, "extreme-picture", [EXTREMES[seed % len(EXTREMES)]]))
    except ImageError:
        if not min(EXTREMES[seed % len(EXTREMES)]) < processor.settings.get("patch_size", 0):  # type: ignore[attr-defined]
            raise
    return asked


def _question(processor: Processor, draw: Draw, name: str, sides: Sequence[Sequence[int]]) -> Question:
    """A prompt of random letters about pictures of these (height, width)."""
    pictures = tuple(draw.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in sides)
    images = processor.images(pictures) if pictures else []
    text = "".join(chr(97 + int(letter)) for letter in draw.integers(0, 26, int(draw.integers(1, 40))))
    ids = processor.encode([Message("user", text, tuple(range(len(sides))))], images)
    return Question(name, pictures, ids, text)


def check(variation: Variation, folder: Path, target: str = "cpu", precision: str = "fp32") -> Judgement:
    """Write, export, ask and judge; fp32 packages by the standard of two float32 implementations."""
    from export.pipeline import export
    from export.request import ExportRequest
    from targets.registry import target_named

    checkpoint = write(variation, folder / "checkpoint")
    request = ExportRequest(
        model=str(checkpoint),
        target=target,
        precision=precision,
        output=folder / "package",
        skip_verify=True,
        without_tokenizer=True,
        prefill_chunk=variation.prefill_chunk,
        host_only=target_named(target).phone,
    )
    candidate = open_candidate(export(request, None))
    try:
        return judge(_compared(variation, candidate, checkpoint, precision))
    finally:
        candidate.backend.close()


def _compared(variation: Variation, candidate: Candidate, checkpoint: Path, precision: str) -> Run:
    opened = open_checkpoint(checkpoint)
    expected_side = reference(opened.spec, opened.weights)
    processor = open_processor(read(candidate.folder), stand_in(candidate.manifest))  # type: ignore[arg-type]
    comparisons = []
    grids = 2 if isinstance(opened.spec.vision, RotaryVisionSpec) else 1
    for question in questions(processor, variation.seed, grids):
        expected = record(expected_side, processor, candidate.limits, question, STEPS)
        said = record(candidate.backend, processor, candidate.limits, question, STEPS, expected.arrays["greedy_ids"])
        rows = compare_recordings(expected, said)
        comparisons.append(Comparison("variation", Standard.FP32, "reference", candidate.name, rows, question.name))
    return Run(
        case=f"{variation.family}-{variation.variant}-{variation.seed}",
        family=variation.family,
        variant=variation.variant,
        target=candidate.manifest["target"],
        precision=precision,
        backend=candidate.name,
        comparisons=tuple(comparisons),
    )
