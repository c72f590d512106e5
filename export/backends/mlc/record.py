"""MLC packages, for phones: weight shards, model libraries and the configuration of the MLC apps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from export.backends.record import VISION, Backend, BackendOption
from export.quantisation.grid_mlc import MlcGrid
from export.quantisation.spec import Storage
from runtime_py.backends import records

if TYPE_CHECKING:
    from export.backends.base import Build, ExportBackend

VISION_PRECISIONS = ("fp16", "int4")


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
    target_files={"android": _app_configuration, "ios": _app_configuration},
)
