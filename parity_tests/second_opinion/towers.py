"""Vision towers: features of our pixels against a tower of transformers.

timm's SigLIP is transformers' with timm's exact GELU; its table of positions is resampled as timm does it, by PyTorch's own
antialiased bicubic. Idefics2's tower finds the positions of patches itself; MiniCPM-Llama3-V lays the patches of a picture
out as one row before it calls it. EVA's towers, whose norm stands on a branch's output, are not in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from parity_tests.judging.metrics import Kind
from parity_tests.second_opinion.opinion import Finding, NotComparable, Part
from parity_tests.second_opinion.subject import Subject, configured, loaded, pictures
from runtime_py.contracts import VISION

if TYPE_CHECKING:
    from torch import Tensor

SIGLIP_SO400M: dict[str, Any] = {
    "embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362, "patch_size": 14, "img_size": 384
}  # fmt: skip
"""vit_so400m_patch14_siglip_384 of timm 0.9.10, models/vision_transformer.py; ``timm_model_args`` come first."""

PIECES = 3
"""Of a picture that are compared at most: the overview and two slices, or views."""

NORM_BEHIND = "a norm on the output of every branch (EVA) is in no tower of transformers"


def require_blocks(subject: Subject, prefix: str, blocks: int) -> None:
    """Raise NotComparable where both sides' towers do not fit the free memory."""
    fitting = subject.blocks_that_fit(prefix, blocks)
    if fitting < blocks:
        raise NotComparable(f"{fitting} of its {blocks} blocks fit the free memory on both sides")


def _pieces(subject: Subject) -> Iterator[tuple[str, Any]]:
    for name, picture in list(pictures().items())[:2]:
        for number, piece in enumerate(subject.processor.images([picture])[:PIECES], 1):
            yield f"features of {name} picture, piece {number}", piece


def _features(subject: Subject, theirs: Callable[[Tensor], Tensor], most: int | None = None) -> Iterator[Finding]:
    """Both sides' features of some pieces.

    Args:
        most: views of a piece that are compared; None for all.
    """
    import torch

    backend = subject.backend()
    for what, piece in _pieces(subject):
        pixels = piece.vision["pixel_values"][:most]
        ours = backend.run(VISION, {**piece.vision, "pixel_values": pixels})["vision_features"]
        with torch.inference_mode():
            yield Finding(what, Kind.FEATURES, theirs(torch.from_numpy(pixels)).numpy(), ours)


def siglip(subject: Subject) -> Iterator[Finding]:
    """timm's SigLIP, all blocks but the last where ``drop_vision_last_layer`` is on, as it is by default."""
    import torch
    from transformers import SiglipVisionConfig, SiglipVisionModel

    stated = subject.document("config.json")
    sizes = SIGLIP_SO400M | (stated.get("timm_model_args") or {})
    blocks = sizes["depth"] - (stated.get("drop_vision_last_layer") is not False)
    config = configured(
        lambda: SiglipVisionConfig(
            hidden_size=sizes["embed_dim"],
            intermediate_size=int(sizes["embed_dim"] * sizes["mlp_ratio"]),
            num_hidden_layers=blocks,
            num_attention_heads=sizes["num_heads"],
            patch_size=sizes["patch_size"],
            image_size=sizes["img_size"],
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            vision_use_head=False,
        ),
        "SiglipVisionConfig",
    )
    require_blocks(subject, "vpm.", blocks)
    model: Any = loaded(SiglipVisionModel(config), _siglip_state(subject, blocks), ("embeddings.position_embedding",))
    table = subject.read("vpm.pos_embed")

    def theirs(pixels: Tensor) -> Tensor:
        grid = tuple(side // sizes["patch_size"] for side in pixels.shape[-2:])
        positions = _resampled(table, grid)
        model.embeddings.position_embedding = torch.nn.Embedding.from_pretrained(positions)
        model.embeddings.position_ids = torch.arange(len(positions))[None]
        features: Tensor = model(pixels).last_hidden_state
        return features

    yield from _features(subject, theirs)


def _resampled(table: Tensor, grid: tuple[int, ...]) -> Tensor:
    """timm's resample_abs_pos_embed: (1, side * side, width) to (rows * columns, width)."""
    import torch

    side = round(table.shape[1] ** 0.5)
    if grid == (side, side):
        return table[0]
    square = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    made = torch.nn.functional.interpolate(square, size=grid, mode="bicubic", antialias=True, align_corners=False)
    return made.permute(0, 2, 3, 1).reshape(-1, table.shape[-1])


def _siglip_state(subject: Subject, blocks: int) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    words = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"}
    for name in subject.names("vpm.", blocks):
        plain = name.removeprefix("vpm.")
        if plain.startswith("blocks."):
            _, number, rest = plain.split(".", 2)
            place = f"encoder.layers.{number}."
            if rest.startswith("attn.qkv."):
                kind = rest.rpartition(".")[2]
                parts = zip("qkv", subject.read(name).chunk(3), strict=True)
                state |= {f"{place}self_attn.{part}_proj.{kind}": tensor for part, tensor in parts}
                continue
            for theirs, ours in words.items():
                rest = rest.replace(theirs, ours)
            state[place + rest] = subject.read(name)
        elif plain.startswith("patch_embed.proj."):
            state[f"embeddings.patch_embedding.{plain.rpartition('.')[2]}"] = subject.read(name)
        elif plain.startswith("norm."):
            state[f"post_layernorm.{plain.removeprefix('norm.')}"] = subject.read(name)
    return state


def idefics2(prefix: str, one_row: bool) -> Callable[[Subject], Iterator[Finding]]:
    """Idefics2's tower under ``prefix``; ``one_row``: patches lie side by side in one row of pixels."""

    def ask(subject: Subject) -> Iterator[Finding]:
        import torch
        from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
        from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

        stated = subject.document("config.json")
        values = {key: value for key, value in stated["vision_config"].items() if key != "model_type"}
        config = configured(lambda: Idefics2VisionConfig(**values), "Idefics2VisionConfig")
        if one_row and stated.get("drop_vision_last_layer") is not False:  # true in the published class
            config.num_hidden_layers -= 1
        blocks = config.num_hidden_layers
        require_blocks(subject, prefix, blocks)
        state = {name.removeprefix(prefix): subject.read(name) for name in subject.names(prefix, blocks)}
        model = loaded(Idefics2VisionTransformer(config), state)
        patch = config.patch_size

        def theirs(pixels: Tensor) -> Tensor:
            rows, columns = (side // patch for side in pixels.shape[-2:])
            if one_row:
                cells = pixels.reshape(1, 3, rows, patch, columns, patch).permute(0, 1, 3, 2, 4, 5)
                pixels, rows, columns = cells.reshape(1, 3, patch, -1), 1, rows * columns
            mask = torch.ones(1, rows, columns, dtype=torch.bool)
            features: Tensor = model(pixels, patch_attention_mask=mask).last_hidden_state
            return features

        yield from _features(subject, theirs)

    return ask


def clip(subject: Subject) -> Iterator[Finding]:
    """CLIP's tower, its last block but one, without the class row."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    folder = str(subject.document("config.json").get("vit_path") or "clip-vit")
    stated = subject.document(f"{folder}/config.json")
    values = {key: value for key, value in (stated.get("vision_config") or stated).items() if key != "model_type"}
    config = configured(lambda: CLIPVisionConfig(**values), "CLIPVisionConfig")
    prefix = "vit/vision_model."
    require_blocks(subject, prefix, config.num_hidden_layers)
    unused = (f"encoder.layers.{config.num_hidden_layers - 1}.", "post_layernorm.", "embeddings.position_ids")
    names = [name for name in subject.names(prefix) if not name.removeprefix(prefix).startswith(unused)]
    model = CLIPVisionModel(config)
    inside = "vision_model." if hasattr(model, "vision_model") else ""  # transformers before 5
    state = {inside + name.removeprefix(prefix): subject.read(name) for name in names}
    loaded(model, state, tuple(inside + name for name in unused))

    def theirs(pixels: Tensor) -> Tensor:
        hidden: Tensor = model(pixels, output_hidden_states=True).hidden_states[-2]
        return hidden[:, 1:]

    yield from _features(subject, theirs, PIECES)


PART = Part(
    name="tower",
    stage=VISION,
    covers="sizes, heads, eps, activation, positions, blocks left out",
    against={
        "minicpm-v": "SiglipVisionModel",
        "minicpm-llama3-v": "Idefics2VisionTransformer",
        "wemm": "Idefics2VisionTransformer",
        "xverse-v": "CLIPVisionModel",
    },
    examine={
        "minicpm-v": siglip,
        "minicpm-llama3-v": idefics2("vpm.", one_row=True),
        "wemm": idefics2("vision_tower.", one_row=False),
        "xverse-v": clip,
    },
    lacking={
        "omnilmm-12b": NORM_BEHIND,
        "cogvlm2": NORM_BEHIND,
        "qwen2-vl": "asked as a whole, see part `whole`",
        "awaker2.5-vl": "asked as a whole, see part `whole`",
    },
)
