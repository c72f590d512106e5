"""What preprocessor_config.json says of a picture, in both layouts, applied or refused by name; the same of a clip's frames.

Sources: transformers 4.45 and 5.24, models/qwen2_vl/image_processing_qwen2_vl.py; 5.24 image_processing_base.py (an
``image_processor`` in processor_config.json comes before preprocessor_config.json), video_processing_utils.py (a
``video_processor`` there before video_preprocessor_config.json).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from export.families.config.section import Section
from runtime_py.preprocess.pixels import CLIP_MEAN, CLIP_STD

MOST_PIXELS = 1 << 28
EDGES = ("shortest_edge", "longest_edge")
AREAS = (*EDGES, "min_pixels", "max_pixels")
LEAST_MEAN, LEAST_DEVIATION = -10.0, 1e-3

STEPS: dict[str, tuple[Any, ...]] = {
    "do_resize": (True,),
    "do_rescale": (True,),
    "do_normalize": (True,),
    "do_convert_rgb": (True,),
    "rescale_factor": (1 / 255,),
}
"""The steps that every processor here takes."""


def check_pictures(pictures: Section, built: dict[str, tuple[Any, ...]]) -> None:
    """Refuse a preprocessing that is not built.

    Args:
        built: beside `STEPS`, the values that a family's processor has, by key.

    Raises:
        UnsupportedModelError: naming the key.
    """
    pictures.only({**STEPS, **built})


def check_clips(
    clips: Section, built: dict[str, tuple[Any, ...]], mean: tuple[float, ...], deviation: tuple[float, ...]
) -> None:
    """Refuse frames that are prepared otherwise than pictures; which frames of a clip there are is the caller's choice.

    Args:
        clips: video_preprocessor_config.json.
        built: as for `check_pictures`.
        mean, deviation: of pictures.

    Raises:
        UnsupportedModelError: naming the key.
    """
    check_pictures(clips, {**built, "cap_pixels_per_frame": (False,), "do_center_crop": (False,)})
    for key, least, own, default in (
        ("image_mean", LEAST_MEAN, mean, CLIP_MEAN),
        ("image_std", LEAST_DEVIATION, deviation, CLIP_STD),
    ):
        if colours(clips, key, least, default) != tuple(own):
            raise clips.unsupported(key, f"{list(own)}, as for pictures")


def edges_of(sections: Sequence[Section], default: tuple[int, int], most: int) -> tuple[int, int]:
    """Shortest and longest edge from the ``size`` of the sections that say so.

    Raises:
        CheckpointError: two that disagree, no sizes, or a shortest beyond the longest.
        UnsupportedModelError: a size of another kind.
    """
    sizes = [section.section("size") for section in sections]
    for size in sizes:
        _refuse_others(size, EDGES, "shortest_edge and longest_edge")
    edges = []
    for key, usual in zip(EDGES, default, strict=True):
        stated = [size for size in sizes if size.has(key)]
        values = [size.integer(key, 1, most) for size in stated]
        if len(set(values)) > 1:
            raise stated[1].wrong(key, f"{values[0]}, as {stated[0].file} has it")
        edges.append(values[0] if values else usual)
    if edges[0] > edges[1]:
        raise sizes[0].wrong("shortest_edge", f"at most the {edges[1]} of the longest")
    return edges[0], edges[1]


def pixel_bounds(pictures: Section, factor: int, default: tuple[int, int]) -> tuple[int, int]:
    """Least and greatest area of a picture.

    ``min_pixels`` and ``max_pixels`` come first, then ``size`` under either pair of names.

    Raises:
        CheckpointError: no areas, or none that a picture of ``factor`` x ``factor`` fits.
        UnsupportedModelError: a size of another kind.
    """
    _refuse_others(pictures.section("size"), AREAS, "shortest_edge and longest_edge, or min_pixels and max_pixels")
    least = _area(pictures, "min_pixels", "shortest_edge", default[0])
    most = _area(pictures, "max_pixels", "longest_edge", default[1])
    if most < factor * factor:
        raise pictures.wrong("max_pixels" if pictures.has("max_pixels") else "size", f"at least {factor * factor} pixels")
    if least > most:
        raise pictures.wrong("min_pixels" if pictures.has("min_pixels") else "size", f"at most the {most} of the greatest")
    return least, most


def _refuse_others(size: Section, known: Sequence[str], built: str) -> None:
    """Refuse a size by height and width, by longest sides, or of any other kind."""
    for key in size.values:
        if key not in known and size.has(key):
            raise size.unsupported(key, built)


def _area(pictures: Section, key: str, edge: str, default: int) -> int:
    size = pictures.section("size")
    if pictures.has(key):
        return pictures.integer(key, 1, MOST_PIXELS)
    return size.integer(edge if size.has(edge) else key, 1, MOST_PIXELS, default)


def colours(pictures: Section, key: str, least: float, default: Sequence[float]) -> tuple[float, float, float]:
    """A number for each of red, green and blue, or one for all of them: ``image_mean`` or ``image_std``."""
    if isinstance(pictures.values.get(key), int | float):
        return (pictures.number(key, least, 10.0),) * 3
    red, green, blue = pictures.numbers(key, 3, least, 10.0, default)
    return red, green, blue
