"""Bounds of a picture's area in every place that a version of transformers writes them to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.families.config.pixels import edges_of, pixel_bounds
from export.families.config.section import Section
from export.families.qwen2_vl.family import FAMILY
from export.families.registry import families
from export.source.tensor_source import EmptySource
from export.specs import ModelSpec
from runtime_py.errors import CheckpointError, UnsupportedModelError
from runtime_py.preprocess.qwen2_vl import Processor

USUAL = (3136, 12845056)
USUAL_FILE = {"min_pixels": USUAL[0], "max_pixels": USUAL[1]}
PLACES: list[dict[str, Any]] = [
    {"min_pixels": 3136, "max_pixels": 50176},
    {"size": {"shortest_edge": 3136, "longest_edge": 50176}},
    {"size": {"min_pixels": 3136, "max_pixels": 50176}},
    {"size": {"shortest_edge": 3136, "longest_edge": 50176}, "min_pixels": None, "max_pixels": None},
    {"size": {"shortest_edge": 9, "longest_edge": 12845056}, "min_pixels": 3136, "max_pixels": 50176},
]
"""transformers 4.45 (both), 4.50 and later, 4.45's own size, fast processors' nulls, and a user's change of the old keys."""


@pytest.mark.parametrize("settings", PLACES)
def test_the_bounds_are_found(settings: dict[str, Any]) -> None:
    assert pixel_bounds(Section(settings), 28, USUAL) == (3136, 50176)


@pytest.mark.parametrize(
    "settings", [{"min_pixels": 9, "max_pixels": 783}, {"size": {"shortest_edge": 9, "longest_edge": 783}}]
)
def test_bounds_that_not_one_patch_fits_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"max_pixels|size"):
        pixel_bounds(Section(settings), 28, USUAL)


def test_edges_that_are_alike_are_taken_and_those_that_cross_are_refused() -> None:
    sizes = [Section({"size": {"shortest_edge": 500}}), Section({"size": {"longest_edge": 500}})]
    assert edges_of(sizes, (336, 672), 4096) == (500, 500)
    with pytest.raises(CheckpointError, match="shortest_edge"):
        edges_of([sizes[0], Section({"size": {"longest_edge": 499}})], (336, 672), 4096)


def test_the_image_processor_of_transformers_reads_them_the_same() -> None:
    made = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl").Qwen2VLImageProcessorPil
    for settings in PLACES:
        if "min_pixels" in settings.get("size", {}):
            continue  # 5.24 no longer reads what 4.45 wrote
        size = made(**settings).size
        assert (size["shortest_edge"], size["longest_edge"]) == pixel_bounds(Section(settings), 28, USUAL)


@pytest.mark.parametrize("settings", [{"patch_size": 6}, {"min_pixels": 6272}, {"image_mean": 0.4, "max_pixels": 50176}])
def test_what_the_file_leaves_out_is_the_published_classes(settings: dict[str, Any], tmp_path: Path) -> None:
    made = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl").Qwen2VLImageProcessorPil
    theirs, ours = made(**settings), spec_of(tmp_path, {"preprocessor_config.json": settings}).runtime
    assert (ours["min_pixels"], ours["max_pixels"]) == (theirs.size["shortest_edge"], theirs.size["longest_edge"])
    mean = theirs.image_mean
    assert tuple(ours["mean"]) == tuple(mean if isinstance(mean, list | tuple) else [mean] * 3)


def spec_of(folder: Path, files: dict[str, Any]) -> ModelSpec:
    """The tiny Qwen2-VL with these files beside its config.json."""
    for name, value in {**FAMILY.config_files(FAMILY.published_config("", "tiny")), **files}.items():
        (folder / name).write_text(json.dumps(value))
    return FAMILY.spec(FAMILY.load_config(folder), EmptySource())


def test_processor_config_comes_before_preprocessor_config(tmp_path: Path) -> None:
    nested = {
        "processor_class": "Qwen2VLProcessor",
        "image_processor": {"size": {"shortest_edge": 144, "longest_edge": 2016}},
    }
    spec = spec_of(tmp_path, {"processor_config.json": nested, "preprocessor_config.json": {"max_pixels": 99999}})
    assert (spec.runtime["min_pixels"], spec.runtime["max_pixels"], spec.image_rows) == (144, 2016, 14)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_resize": False},
        {"do_rescale": False},
        {"rescale_factor": 1.0},
        {"resample": 2},
        {"size": {"height": 84, "width": 84}},
        {"patch_size": 16},
        {"merge_size": 3},
        {"temporal_patch_size": 1},
    ],
)
def test_another_preprocessing_is_refused_by_name(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=next(iter(settings))):
        spec_of(tmp_path, {"preprocessor_config.json": settings})


@pytest.mark.parametrize(
    "settings",
    [
        {"max_pixels": 0},
        {"max_pixels": 10},
        {"max_pixels": 10**12},
        {"min_pixels": 9000, "max_pixels": 8000},
        {"size": 448},
        {"size": {"longest_edge": "448"}},
        {"image_mean": [0.5]},
        {"image_std": [0, 0, 0]},
        {"image_std": [0.5, None, 0.5]},
    ],
)
def test_nonsense_is_one_error_that_names_the_file(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        spec_of(tmp_path, {"preprocessor_config.json": settings})


def test_edges_are_read_from_either_file_and_must_agree() -> None:
    family = families()["wemm"]
    config = family.published_config("", "tiny")
    edges = {"size": {"shortest_edge": 28, "longest_edge": 140}}
    moved = {**config, "image_processor": None, "preprocessor": edges}
    spec = family.spec(moved, EmptySource())
    assert (spec.runtime["shortest_edge"], spec.runtime["longest_edge"], spec.image.longest) == (28, 140, 140)
    assert family.spec({**config, "preprocessor": {"size": config["image_processor"]["size"]}}, EmptySource())
    with pytest.raises(CheckpointError, match="shortest_edge"):
        family.spec({**config, "preprocessor": edges}, EmptySource())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"downsampler_config": {"hidden_act": "relu"}}, "hidden_act"),
        ({"downsampler_config": {"bias": True}}, "bias"),
        ({"downsampler_config": {"stride": 1}}, "stride"),
        ({"downsampler_config": {"depth": 3}}, "depth"),
        ({"do_image_splitting": True}, "do_image_splitting"),
        ({"preprocessor": {"image_mean": [0.1, 0.2, 0.3]}}, "image_mean"),
        ({"preprocessor": {"size": {"height": 154, "width": 154}}}, "height"),
        ({"image_processor": {"size": {"max_height": 154}}}, "max_height"),
    ],
)
def test_what_wemm_does_not_build_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    family = families()["wemm"]
    config = family.published_config("", "tiny")
    tables = {key: {**config.get(key, {}), **value} if isinstance(value, dict) else value for key, value in changes.items()}
    with pytest.raises(UnsupportedModelError, match=named):
        family.spec({**config, **tables}, EmptySource())


@pytest.mark.parametrize(
    "changes",
    [{"slice_mode": False}, {"use_image_id": True}, {"im_start": "<img>"}, {"image_mean": 0.4}, {"scale_resolution": 99}],
)
def test_what_minicpm_llama3_v_does_not_build_is_refused_by_name(changes: dict[str, Any]) -> None:
    family = families()["minicpm-llama3-v"]
    config = family.published_config("", "tiny")
    usual = {"slice_mode": True, "use_image_id": False, "im_start": "<image>", "image_mean": 0.5, "scale_resolution": 112}
    assert family.spec({**config, "preprocessor": usual}, EmptySource()) == family.spec(config, EmptySource())
    with pytest.raises(UnsupportedModelError, match=f"preprocessor_config.json: {next(iter(changes))}"):
        family.spec({**config, "preprocessor": {**usual, **changes}}, EmptySource())


CLIPS = "video_preprocessor_config.json"
CLIP_SETTINGS: list[tuple[dict[str, Any], list[int]]] = [
    ({"min_pixels": 6272, "max_pixels": 50176}, [6272, 50176]),
    ({"size": {"shortest_edge": 3136, "longest_edge": 50176}}, [3136, 50176]),
    ({"do_sample_frames": False, "fps": 2}, [128 * 28 * 28, 768 * 28 * 28]),
]
"""The last has the class's own (transformers 5.24, video_processing_qwen2_vl.py, which torchvision alone can open)."""


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("settings", "bounds"), CLIP_SETTINGS)
def test_frames_have_the_bounds_of_their_own_file(
    settings: dict[str, Any], bounds: list[int], nested: bool, tmp_path: Path
) -> None:
    resized = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl").smart_resize
    files = {"processor_config.json": {"video_processor": settings}} if nested else {CLIPS: settings}
    runtime = spec_of(tmp_path, {"preprocessor_config.json": USUAL_FILE, **files}).runtime
    assert runtime["clip_pixels"] == bounds
    assert (runtime["min_pixels"], runtime["max_pixels"]) == USUAL
    clip, picture = np.zeros((2, 90, 700, 3), np.uint8), np.zeros((90, 700, 3), np.uint8)
    grids = [piece.state["grid"] for piece in Processor(runtime, None).images([clip, picture])]
    for grid, (least, most) in zip(grids, (bounds, USUAL), strict=True):
        sides = tuple(int(side) * runtime["patch_size"] for side in grid[1:3])
        assert sides == tuple(resized(90, 700, runtime["patch_size"] * runtime["merge"], least, most))


def test_frames_without_a_file_of_their_own_are_pictures(tmp_path: Path) -> None:
    assert "clip_pixels" not in spec_of(tmp_path, {"preprocessor_config.json": USUAL_FILE}).runtime
    assert "clip_pixels" not in spec_of(tmp_path, {"preprocessor_config.json": USUAL_FILE, CLIPS: USUAL_FILE}).runtime


@pytest.mark.parametrize(
    "settings", [{"cap_pixels_per_frame": True}, {"image_mean": [0.5, 0.5, 0.5]}, {"resample": 2}, {"do_normalize": False}]
)
def test_frames_that_are_prepared_otherwise_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"{CLIPS}: {next(iter(settings))}"):
        spec_of(tmp_path, {CLIPS: settings})
