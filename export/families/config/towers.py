"""Vision towers as data: the published ones, and how a configuration of each kind becomes a spec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from export.families.config.rope import plain_vision_rope
from export.families.config.section import Section
from export.modules.vision.specs import NormPlacement, PositionKind, RotaryVisionSpec, VisionSpec
from export.specs import Activation
from runtime_py.errors import UnsupportedModelError

MOST_SIDE, MOST_GRID, MOST_BLOCKS, MOST_WIDTH, MOST_HEADS = 4096, 256, 128, 1 << 14, 256
"""Bounds of a tower: pixels and patches along a side, blocks, width, heads."""

LEAST_EPS = 1e-15
CHANNELS: dict[str, tuple[Any, ...]] = dict.fromkeys(("num_channels", "in_channels", "in_chans"), (3,))


@dataclass(frozen=True)
class TimmTower:
    """A tower that a config names and whose sizes timm has (timm 0.9.10).

    Attributes:
        sizes: timm's keyword arguments; ``timm_model_args`` of config.json comes first, for small checkpoints.
        placement, class_token: how its blocks normalise, and whether a learned row goes through them.
    """

    name: str
    sizes: dict[str, float]
    placement: NormPlacement
    class_token: bool


SIGLIP_SO400M = TimmTower(
    "vit_so400m_patch14_siglip_384",
    {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362, "patch_size": 14, "img_size": 384},
    NormPlacement.PRE,
    class_token=False,
)
EVA02_ENORMOUS = TimmTower(
    "eva02_enormous_patch14_clip_224",
    {"embed_dim": 1792, "depth": 64, "num_heads": 16, "mlp_ratio": 8.571428571428571, "patch_size": 14, "img_size": 224},
    NormPlacement.BRANCH_OUTPUT,
    class_token=True,
)
"""No rotary positions in spite of its name."""

CLIP_VIT_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CLIP_VIT_L |= {"patch_size": 14, "image_size": 224}
"""openai/clip-vit-large-patch14, for a folder whose config.json leaves sizes to the class."""

QWEN2_VL = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
QWEN2_VL |= {"spatial_merge_size": 2, "temporal_patch_size": 2}
"""Defaults of transformers' Qwen2VLVisionConfig."""


def timm_tower(tower: TimmTower, config: Section, dropped: int, image_size: int | None) -> VisionSpec:
    """A timm tower without its last ``dropped`` blocks.

    Args:
        image_size: side of the one picture size that it takes; None for pictures of any grid.
    """
    sizes = config.section("timm_model_args").over(tower.sizes)
    width, heads = _width_and_heads(sizes, "embed_dim", "num_heads")
    patch = sizes.integer("patch_size", 1, MOST_SIDE)
    side = None if image_size is None else grid_side(config, "image_size", image_size, patch, fixed=True)
    return VisionSpec(
        width=width,
        layers=_blocks(sizes, "depth", dropped),
        heads=heads,
        mlp_width=_mlp_width(sizes, width),
        patch_size=patch,
        activation=Activation.GELU,
        norm_placement=tower.placement,
        norm_eps=1e-6,
        positions=PositionKind.RESAMPLED if side is None else PositionKind.FIXED,
        native_grid=grid_side(sizes, "img_size", sizes.integer("img_size", 1, MOST_SIDE), patch, fixed=False),
        grid=None if side is None else (side, side),
        class_token=tower.class_token,
    )


class Sizes(TypedDict):
    """Of a tower, as `VisionSpec` calls them."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    patch_size: int


def _sizes(vision: Section, heads_key: str, dropped: int) -> Sizes:
    """Those that a ``vision_config`` of transformers states, without its last ``dropped`` blocks."""
    width, heads = _width_and_heads(vision, "hidden_size", heads_key)
    return Sizes(
        width=width,
        layers=_blocks(vision, "num_hidden_layers", dropped),
        heads=heads,
        mlp_width=vision.integer("intermediate_size", 1, MOST_WIDTH * 8),
        patch_size=vision.integer("patch_size", 1, MOST_SIDE),
    )


def idefics2_tower(vision: Section, dropped: int = 0) -> VisionSpec:
    """Idefics2's tower: tanh GELU, positions picked from a square table by index."""
    vision.only({"hidden_act": ("gelu_pytorch_tanh",), **CHANNELS})
    return VisionSpec(
        **_sizes(vision, "num_attention_heads", dropped),
        activation=Activation.GELU_TANH,
        norm_placement=NormPlacement.PRE,
        norm_eps=vision.number("layer_norm_eps", LEAST_EPS, 1.0, 1e-6),
        positions=PositionKind.INDEXED,
        native_grid=square_grid(vision, fixed=False),
        grid=None,
    )


def clip_tower(vision: Section, dropped: int) -> VisionSpec:
    """CLIP's tower without its last ``dropped`` blocks and without the norm behind them."""
    vision = vision.over(CLIP_VIT_L)
    vision.only({"hidden_act": ("quick_gelu",), **CHANNELS})
    sizes, side = _sizes(vision, "num_attention_heads", dropped), square_grid(vision)
    return VisionSpec(
        **sizes,
        activation=Activation.QUICK_GELU,
        norm_placement=NormPlacement.PRE,
        norm_eps=vision.number("layer_norm_eps", LEAST_EPS, 1.0, 1e-5),
        positions=PositionKind.FIXED,
        native_grid=side,
        grid=(side, side),
        patch_bias=False,
        class_token=True,
        input_norm=True,
        final_norm=False,
    )


def eva2_clip_tower(vision: Section) -> VisionSpec:
    """CogVLM2's EVA2-CLIP-E: norms on the branch outputs, the class row kept."""
    vision.only({"hidden_act": ("gelu",), **CHANNELS})
    sizes, side = _sizes(vision, "num_heads", 0), square_grid(vision)
    if side % 2:
        raise vision.unsupported("image_size", "an even number of patches along a side")
    positions = side * side + 1
    if vision.integer("num_positions", 1, MOST_GRID**2 + 1) != positions:
        raise UnsupportedModelError(
            f"vision tower with {vision.values['num_positions']} positions",
            f"{positions} positions for a {vision.values['image_size']} px image",
            "check config.json",
        )
    return VisionSpec(
        **sizes,
        activation=Activation.GELU,
        norm_placement=NormPlacement.BRANCH_OUTPUT,
        norm_eps=vision.number("layer_norm_eps", LEAST_EPS, 1.0),
        positions=PositionKind.FIXED,
        native_grid=side,
        grid=(side, side),
        class_token=True,
        emit_class_token=True,
        final_norm=False,
    )


@dataclass(frozen=True)
class Qwen2Tower:
    """Qwen2-VL's tower and the geometry of its patches."""

    spec: RotaryVisionSpec
    patch: int
    merge: int
    temporal: int


def qwen2_tower(vision: Section, hidden: int) -> Qwen2Tower:
    """Qwen2-VL's tower, whose merger gives rows of ``hidden`` values."""
    vision = vision.over(QWEN2_VL)
    vision.only({"hidden_act": ("quick_gelu",), "hidden_size": (hidden,), **CHANNELS})
    plain_vision_rope(vision, 10000.0)
    width, heads = _width_and_heads(vision, "embed_dim", "num_heads")
    if width // heads % 4:
        raise vision.wrong("num_heads", f"a divisor of embed_dim {width} that leaves heads of a multiple of 4")
    patch = vision.integer("patch_size", 1, MOST_SIDE)
    vision.only({"spatial_patch_size": (patch,)})
    merge, temporal = vision.integer("spatial_merge_size", 1, 16), vision.integer("temporal_patch_size", 1, 16)
    spec = RotaryVisionSpec(
        width=width,
        layers=_blocks(vision, "depth", 0),
        heads=heads,
        mlp_width=_mlp_width(vision, width),
        patch_values=3 * temporal * patch * patch,
        activation=Activation.QUICK_GELU,
        norm_eps=1e-6,
        merge=merge,
    )
    return Qwen2Tower(spec, patch, merge, temporal)


def square_grid(vision: Section, fixed: bool = True) -> int:
    """Patches along a side of the square that ``image_size`` and ``patch_size`` describe; see `grid_side`."""
    patch = vision.integer("patch_size", 1, MOST_SIDE)
    return grid_side(vision, "image_size", vision.integer("image_size", 1, MOST_SIDE), patch, fixed)


def grid_side(section: Section, key: str, image_size: int, patch: int, fixed: bool) -> int:
    """Whole patches along a side, at least one and at most `MOST_GRID`.

    Args:
        fixed: it is the size of the pictures themselves, which must hold nothing beside whole patches.
    """
    if not 1 <= image_size // patch <= MOST_GRID or (fixed and image_size % patch):
        raise section.wrong(key, f"{patch} to {patch * MOST_GRID} pixels, {'whole ' * fixed}patches of {patch}")
    return image_size // patch


def _width_and_heads(section: Section, width_key: str, heads_key: str) -> tuple[int, int]:
    width, heads = section.integer(width_key, 1, MOST_WIDTH), section.integer(heads_key, 1, MOST_HEADS)
    if width % heads:
        raise section.wrong(heads_key, f"a divisor of {width_key} {width}")
    return width, heads


def _blocks(section: Section, key: str, dropped: int) -> int:
    return section.integer(key, 1 + dropped, MOST_BLOCKS) - dropped


def _mlp_width(section: Section, width: int) -> int:
    wide = int(width * section.number("mlp_ratio", 1e-3, 64.0))
    if wide < 1:
        raise section.wrong("mlp_ratio", f"a ratio that leaves a width {width} at least one value")
    return wide
