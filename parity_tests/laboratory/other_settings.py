"""Faults in what a package's manifest says of pictures: another resampling kernel, other statistics, another size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from export.package.sample_questions import drawn_pictures
from runtime_py.preprocess.processors import make_processor


def _pixels(manifest: dict[str, Any]) -> list[np.ndarray]:
    """What the package's processor makes of the check's first picture."""
    images = make_processor(manifest["processor"], manifest["runtime"], None).images(drawn_pictures()[:1])
    return [array for image in images for array in image.vision.values()]


def other_settings(package: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The processor's settings are others than the checkpoint's.

    Raises:
        ValueError: this family's pictures come out the same.
    """
    path = package / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    before = _pixels(manifest)
    manifest["runtime"] |= change(manifest["runtime"])
    after = _pixels(manifest)
    if all(a.shape == b.shape and np.array_equal(a, b) for a, b in zip(before, after, strict=True)):
        raise ValueError("this family's settings have no such number")
    path.write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def bilinear_resize(package: Path) -> None:
    """The processor's settings name another resampling kernel than the checkpoint's."""
    other_settings(package, lambda _: {"resample": "bilinear"})


def half_statistics(settings: dict[str, Any]) -> dict[str, Any]:
    """Mean and deviation of every channel are a half."""
    return {name: [0.5] * 3 for name in ("mean", "std") if name in settings}


def quarter_size(settings: dict[str, Any]) -> dict[str, Any]:
    """The largest number of pixels is a quarter."""
    return {name: settings[name] // 4 for name in ("max_pixels",) if name in settings}
