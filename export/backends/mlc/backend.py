"""The MLC backend: weight directory, model libraries and app configuration for phones (targets android and ios).

Steps: tokenizer and configuration, then the phone's library and this machine's, then the weights shard by shard, then
their index. Compiling runs in a process of its own, so that its memory is given back before the weights are streamed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import runpy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.backends.base import Build, BuildOptions, ExportBackend, Prediction, Step
from export.backends.mlc.record import VISION_PRECISIONS
from export.backends.mlc.schemes import Scheme, scheme_of
from export.backends.mlc.support import decoder_sides, text_selectors
from export.quantisation.spec import Assignment, LayerShape, Storage
from runtime_py.backends import records
from runtime_py.backends.stock_engine import KEY, StockEngine
from runtime_py.contracts import DECODER, EMBED
from runtime_py.errors import UnsupportedModelError, UsageError

if TYPE_CHECKING:
    from export.backends.mlc.package_parts import PackageParts
    from export.specs import ModelSpec

TABLE, HEAD = f"{EMBED}.table", f"{DECODER}.head"
"""The one matrix of a tied head; the package stores it as the table."""

OF_THE_MACHINE = ("device_library", "host_library", records.HOST_KERNELS, "tvm", "tvm_commit", "tvm_ffi")
"""Of a package's block, what the machine that exported it and the waiver host-only decide."""

QUANTISED_ROLES = ("decoder", "head", "embedding")


class MlcBackend(ExportBackend):
    """q4f16_1, q4f32_1, q0f16 and q0f32 packages; see docs/targets/android.md and ios.md."""

    name = records.MLC.name

    def assignments(self, spec: ModelSpec, options: BuildOptions) -> dict[str, Assignment]:
        from export.modules.build import layer_shapes

        assignments = assign(layer_shapes(spec), scheme_of(options.precision), options.extra)
        if spec.decoder.tied_head:
            assignments[TABLE] = replace(assignments[TABLE], shares=HEAD)
        return assignments

    def refuse(self, spec: ModelSpec, options: BuildOptions) -> None:
        refuse_unbuilt(spec, options)

    def picture_rows(self, spec: ModelSpec) -> int:
        from export.backends.mlc.support import overview_rows

        return overview_rows(spec)

    def stock_engine(self, spec: ModelSpec, options: BuildOptions) -> StockEngine:
        from export.backends.mlc.stock_engine import stock_engine

        return stock_engine(spec, options.limits)

    def notes(self, spec: ModelSpec, options: BuildOptions, assignments: Mapping[str, Assignment]) -> tuple[str, ...]:
        from export.backends.mlc.prediction import compiling_bytes

        if host_only(options):
            return ()
        both = compiling_bytes(spec, 2) / (1 << 30)
        return (f"both model libraries are compiled at once where {both:.1f} GiB can be taken, and then take as much",)

    def predict(self, spec: ModelSpec, options: BuildOptions, assignments: Mapping[str, Assignment]) -> Prediction:
        from export.backends.mlc.prediction import predict

        return predict(spec, options, assignments)

    def steps(self, build: Build) -> list[Step]:
        from export.backends.mlc.package_parts import PackageParts

        self.refuse(build.spec, build.options)
        parts = PackageParts(build)
        shards = [Step(f"mlc {shard.file}", partial(parts.write_shard, number)) for number, shard in enumerate(parts.shards)]
        return [
            Step("mlc configuration", parts.write_configuration),
            Step("mlc libraries", partial(parts.write_libraries, not host_only(build.options))),
            *shards,
            Step("mlc weight index", parts.write_index),
        ]

    def written_again(self, build: Build, block: Mapping[str, Any], package: Path) -> list[Path]:
        from export.backends.mlc.package_parts import PackageParts

        parts = PackageParts(build)
        return [*parts.write_configuration(), *parts.write_index(package)]

    def stated_again(self, build: Build, block: Mapping[str, Any]) -> dict[str, Any]:
        from export.backends.mlc.package_parts import PackageParts

        parts = PackageParts(build)
        whole = {**of_libraries(parts), **engine_facts(parts)}
        return {key: value for key, value in whole.items() if key not in OF_THE_MACHINE}

    def manifest(self, build: Build) -> dict[str, Any]:
        from export.backends.mlc.package_parts import PackageParts

        parts = PackageParts(build)
        return {**of_libraries(parts), **engine_facts(parts)}


def assign(layers: list[LayerShape], scheme: Scheme, extra: Mapping[str, Any]) -> dict[str, Assignment]:
    """What every layer becomes; int4 covers the language model, and the vision side only when it is asked for.

    Raises:
        UsageError: a vision precision that MLC packages do not have.
    """
    vision = extra.get("vision_precision", "fp16")
    if vision not in VISION_PRECISIONS:
        raise UsageError(f"vision precision {vision!r}", "fp16 or int4 in an MLC package", "change --vision-precision")
    whole = Storage.FP32 if scheme.model_dtype == "float32" else Storage.FP16
    assignments = {}
    for layer in layers:
        tail = f"; {layer.columns} columns end in a short group" if layer.columns % 32 else ""
        if not scheme.grid:
            assignments[layer.name] = Assignment(layer, whole, reason=f"{scheme.name} quantises nothing")
        elif layer.role in QUANTISED_ROLES:
            assignments[layer.name] = Assignment(
                layer, Storage.INT4, scheme.grid, f"{layer.role} matrix in groups of 32{tail}"
            )
        elif vision == "int4" and layer.role in ("vision", "connector"):
            assignments[layer.name] = Assignment(
                layer, Storage.INT4, scheme.grid, f"int4 was asked for the vision side{tail}"
            )
        else:
            reason = "adapters are small" if layer.role == "adapter" else "image features lose too much in four bits"
            if tail:
                reason += f"; {layer.columns} columns are no multiple of 32"
            assignments[layer.name] = Assignment(layer, whole, reason=reason)
    return assignments


def host_only(options: BuildOptions) -> bool:
    """Whether the phone's library is left out (waiver host-only): a package to check on this machine."""
    return bool(options.extra.get("host_only"))


def refuse_unbuilt(spec: ModelSpec, options: BuildOptions) -> None:
    """Raise before any work what the library cannot express yet.

    Raises:
        UnsupportedModelError: a stage of a kind that has no Relax block, or a family without a prompt.
    """
    from export.backends.mlc.support import unsupported
    from export.prompts.declared import declared_prompt

    declared_prompt(spec)
    reasons = unsupported(spec, device=not host_only(options))
    if reasons:
        raise UnsupportedModelError(
            f"{spec.family} for {options.target.name}: " + "; ".join(reasons),
            "stages that export/backends/mlc/blocks builds",
            "choose --target cpu or desktop-gpu for this family",
        )


def of_libraries(parts: PackageParts) -> dict[str, Any]:
    """Where things lie and what built them; of a package for several sequences, what they share a call with."""
    spec = parts.build.spec
    shared = {"text_selectors": text_selectors(spec)} if parts.limits.batch > 1 and decoder_sides(spec) else {}
    files = {variant: path.as_posix() for variant, path in parts.host_kernels.items()}
    kernels = {records.HOST_KERNELS: files} if files else {}
    return {
        "model_id": parts.model_id,
        "model_lib": parts.model_lib,
        "weights": parts.weights_folder.as_posix(),
        "device_library": None if host_only(parts.build.options) else parts.device_library.as_posix(),
        "host_library": parts.host_library.as_posix(),
        **kernels,
        "quantization": parts.scheme.name,
        "dtype": parts.scheme.model_dtype,
        "tvm": importlib.metadata.version("apache-tvm"),
        "tvm_commit": tvm_commit(),
        "tvm_ffi": importlib.metadata.version("apache-tvm-ffi"),
        "decoder_sides": [tensor.name for tensor in decoder_sides(spec)],
        **shared,
    }


def tvm_commit() -> str | None:
    """The commit of apache/tvm that the installed compiler was built from, without importing it; None when it says none."""
    place = importlib.util.find_spec("tvm")
    if place is None or place.origin is None:
        return None
    version = Path(place.origin).with_name("_version.py")
    stated = runpy.run_path(str(version)).get("__commit_id__") if version.is_file() else None
    return None if stated is None else str(stated).removeprefix("g")


def engine_facts(parts: PackageParts) -> dict[str, Any]:
    """What the stock apps do with this package, beside our own runtime."""
    from export.backends.mlc.conversation_template import prompt_facts
    from export.prompts.declared import declared_prompt

    prompt = prompt_facts(declared_prompt(parts.spec))
    sent = parts.engine.picture
    if sent is None:
        prompt["picture_message"] = None
    return {KEY: parts.engine.to_json(), "stock_app_prompt": prompt}
