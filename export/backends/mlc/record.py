"""MLC packages, for phones: weight shards, model libraries and the configuration of the MLC apps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.backends.record import VISION, Backend, BackendOption
from export.quantisation.grid_mlc import MlcGrid
from export.quantisation.spec import Storage
from runtime_py.backends import records

if TYPE_CHECKING:
    from export.backends.base import Build, ExportBackend

VISION_PRECISIONS = ("fp16", "int4")


@dataclass(frozen=True)
class Phone:
    """What differs between phones.

    Attributes:
        place: what its library is compiled for, a key of `export.backends.mlc.library.TARGETS`.
        device: the phone's name in ``mlc-package-config.json``.
        weights_key: under which ``mlc-app-config.json`` says where a model's weights lie.
    """

    place: str
    device: str
    weights_key: str


PHONES = {"android": Phone("android", "android", "model_url"), "ios": Phone("ios", "iphone", "model_path")}
"""By the name of the target."""


def _exporter() -> ExportBackend:
    from export.backends.mlc.backend import MlcBackend

    return MlcBackend()


def _app_configuration(build: Build) -> list[Path]:
    from export.backends.mlc.package_parts import PackageParts

    return PackageParts(build).write_app_configuration()


BACKEND = Backend(
    runtime=records.MLC,
    exporter=_exporter,
    tools=("torch", "apache-tvm", "apache-tvm-ffi"),
    grids=(MlcGrid("q4f16_1", "float16"), MlcGrid("q4f32_1", "float32")),
    wider={Storage.FP16: ""},
    options=(BackendOption("vision_precision", "--vision-precision", VISION_PRECISIONS, VISION),),
    target_files=dict.fromkeys(PHONES, _app_configuration),
)
