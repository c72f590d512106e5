"""Pixels: what our processors make of a picture against transformers' image processors on Pillow.

Settings come from preprocessor_config.json or config.json by the keys named here, or are literals of the published code.
XVERSE-V's tiles have no counterpart; its view of the whole picture has. The slices of MiniCPM-V 2.0 and MiniCPM-Llama3-V are
cut by the rule of transformers' MiniCPM-V 4.6, whose patches come in squares of two; with half a patch's side its sizes are
those of the older models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from parity_tests.judging.metrics import Kind
from parity_tests.judging.probes import PREPROCESS
from parity_tests.second_opinion.opinion import Finding, NotComparable, Part
from parity_tests.second_opinion.subject import Subject, pictures

HALF = (0.5, 0.5, 0.5)
BICUBIC, BILINEAR = 3, 2
"""Pillow's numbers of resampling kernels."""

SLICES = {"scale_resolution": 448, "max_slice_nums": 9, "patch_size": 14}
"""Defaults of the published classes of MiniCPM-V 2.0 and MiniCPM-Llama3-V 2.5."""

WEMM_EDGES = {"shortest_edge": 378, "longest_edge": 980}
"""image_processor of the published WeMM-Chat-CN, where config.json is silent."""

Maker = Callable[..., Any]


def _findings(
    subject: Subject, theirs: Callable[[np.ndarray], Sequence[np.ndarray]], most: int | None = None
) -> Iterator[Finding]:
    """Every piece of every picture.

    Args:
        theirs: pieces (1, 3, height, width) of a picture.
        most: views of a piece that are compared.
    """
    for name, picture in pictures().items():
        ours = [piece.vision["pixel_values"][:most] for piece in subject.processor.images([picture])]
        made = theirs(picture)
        shapes = [[list(piece.shape) for piece in side] for side in (made, ours)]
        if shapes[0] == shapes[1]:
            flat = [np.concatenate([piece.reshape(-1) for piece in side]) for side in (made, ours)]
            yield Finding(f"{len(ours)} pieces of {name} picture", Kind.PIXELS, *flat)
        else:
            sizes = [np.array([size for shape in side for size in shape]) for side in shapes]
            yield Finding(f"sizes of the pieces of {name} picture", Kind.EXACT, *sizes)


def squares(
    library: str, side: Callable[[dict[str, Any]], int], most: int | None = None
) -> Callable[[Subject], Iterator[Finding]]:
    """A picture squeezed into one square; ``library`` is CLIP or Siglip, for their means and deviations."""

    def ask(subject: Subject) -> Iterator[Finding]:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        pixels = side(subject.document("config.json"))
        size = {"height": pixels, "width": pixels}
        maker: Any = (
            CLIPImageProcessorPil(size=size, do_center_crop=False)
            if library == "CLIP"
            else SiglipImageProcessorPil(size=size, resample=BICUBIC, image_mean=HALF, image_std=HALF)
        )
        yield from _findings(
            subject, lambda picture: list(maker(images=[picture], return_tensors="np")["pixel_values"][None]), most
        )

    return ask


def xverse(subject: Subject) -> Iterator[Finding]:
    """The view of the whole picture."""
    folder = str(subject.document("config.json").get("vit_path") or "clip-vit")
    stated = subject.document(f"{folder}/config.json")
    side = (stated.get("vision_config") or stated).get("image_size", 224)
    yield from squares("CLIP", lambda _: side, most=1)(subject)


def cogvlm2(subject: Subject) -> Iterator[Finding]:
    """Pictures; clips are scaled after they are normalised, which no image processor does."""
    if "CogVLMVideoForCausalLM" in (subject.document("config.json").get("architectures") or []):
        raise NotComparable("no image processor of transformers scales a frame after normalising it")
    yield from squares("CLIP", lambda config: config["vision_config"]["image_size"])(subject)


def wemm(subject: Subject) -> Iterator[Finding]:
    """Idefics2's sizes; both sides pad to whole patches afterwards, which is left out."""
    from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

    config = subject.document("config.json")
    size = WEMM_EDGES | {
        key: value for key, value in ((config.get("image_processor") or {}).get("size") or {}).items() if value
    }
    if (subject.folder / "image_processor_2k.py").is_file() or size["longest_edge"] == 1960:
        raise NotComparable("WeMM-Chat-2k enlarges every picture to its longest edge, which Idefics2's processor does not")
    maker = Idefics2ImageProcessorPil(
        do_image_splitting=False, size=size, resample=BILINEAR, image_mean=HALF, image_std=HALF
    )
    for name, picture in pictures().items():
        theirs = maker(images=[picture], return_tensors="np")["pixel_values"][0]
        ours = subject.processor.images([picture])[0].vision["pixel_values"]
        height, width = theirs.shape[-2:]
        yield Finding(f"pixels of {name} picture", Kind.PIXELS, theirs, ours[..., :height, :width])


def sliced(subject: Subject) -> Iterator[Finding]:
    """An overview and slices."""
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

    config = subject.document("config.json")
    stated = {**config, **(config.get("slice_config") or {})}
    rule = {key: stated.get(key) or default for key, default in SLICES.items()}
    half = rule["patch_size"] // 2
    if 2 * half != rule["patch_size"]:
        raise NotComparable(f"patches of {rule['patch_size']} pixels cannot be halved")
    settings: dict[str, Any] = {**rule, "patch_size": half, "downsample_mode": "4x", "image_mean": HALF, "image_std": HALF}
    maker = MiniCPMV4_6ImageProcessorPil(**settings)

    def theirs(picture: np.ndarray) -> list[np.ndarray]:
        made = maker(images=[picture], return_tensors="np")
        rows, pieces, start = np.asarray(made["pixel_values"])[0], [], 0
        for tall, wide in np.asarray(made["target_sizes"]):
            strip = rows[..., start : start + tall * wide * half].reshape(3, half, tall, wide, half)
            pieces.append(strip.transpose(0, 2, 1, 3, 4).reshape(1, 3, tall * half, wide * half))
            start += tall * wide * half
        return pieces

    yield from _findings(subject, theirs)


def minicpm_v(subject: Subject) -> Iterator[Finding]:
    """1.0 squeezes, 2.0 cuts; ``slice_mode`` tells them apart."""
    if subject.document("config.json").get("slice_mode"):
        yield from sliced(subject)
    else:
        yield from squares("Siglip", lambda config: config.get("image_size", 448))(subject)


def qwen2_processor(subject: Subject) -> Maker:
    """transformers' processor of Qwen2-VL with the checkpoint's own settings."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    stated = subject.document("processor_config.json").get("image_processor") or subject.document("preprocessor_config.json")
    made: Maker = Qwen2VLImageProcessorPil.from_dict(stated)
    return made


def qwen2(subject: Subject) -> Iterator[Finding]:
    """Patches and their grid."""
    maker = qwen2_processor(subject)
    for name, picture in pictures().items():
        made = maker(images=[picture], return_tensors="np")
        ours = subject.processor.images([picture])[0]
        yield Finding(f"grid of {name} picture", Kind.EXACT, made["image_grid_thw"][0], ours.state["grid"][:3])
        yield Finding(
            f"patches of {name} picture", Kind.PIXELS, made["pixel_values"],
            ours.vision["pixel_values"].reshape(-1, ours.vision["pixel_values"].shape[-1]),
        )  # fmt: skip


PART = Part(
    name="pixels",
    stage=PREPROCESS,
    covers="sizes, slices, kernel, mean and deviation, order of patches",
    against={
        "minicpm-v": "SiglipImageProcessorPil, MiniCPMV4_6ImageProcessorPil",
        "minicpm-llama3-v": "MiniCPMV4_6ImageProcessorPil",
        "omnilmm-12b": "CLIPImageProcessorPil",
        "wemm": "Idefics2ImageProcessorPil",
        "xverse-v": "CLIPImageProcessorPil",
        "cogvlm2": "CLIPImageProcessorPil",
        "qwen2-vl": "Qwen2VLImageProcessorPil",
        "awaker2.5-vl": "Qwen2VLImageProcessorPil",
    },
    examine={
        "minicpm-v": minicpm_v,
        "minicpm-llama3-v": sliced,
        "omnilmm-12b": squares("CLIP", lambda config: config.get("image_size", 448)),
        "wemm": wemm,
        "xverse-v": xverse,
        "cogvlm2": cogvlm2,
        "qwen2-vl": qwen2,
        "awaker2.5-vl": qwen2,
    },
)
