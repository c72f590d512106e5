"""The MLC backend: weight directory, model libraries and app configuration for phones (targets android and ios).

Steps: tokenizer and configuration, then the phone's library and this machine's, then the weights shard by shard, then
their index. Compiling runs in a process of its own, so that its memory is given back before the weights are streamed.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from export.backends.base import Build, BuildOptions, ExportBackend, Prediction, Step
from export.backends.mlc.record import VISION_PRECISIONS
from export.backends.mlc.schemes import Scheme, scheme_of
from export.backends.mlc.support import decoder_sides
from export.quantisation.spec import Assignment, LayerShape, Storage
from runtime_py.backends import records
from runtime_py.contracts import DECODER, EMBED
from runtime_py.errors import UnsupportedModelError, UsageError

if TYPE_CHECKING:
    from export.backends.mlc.package_parts import PackageParts
    from export.specs import ModelSpec

TABLE, HEAD = f"{EMBED}.table", f"{DECODER}.head"
"""The one matrix of a tied head; the package stores it as the table."""

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

    def predict(self, spec: ModelSpec, options: BuildOptions, assignments: Mapping[str, Assignment]) -> Prediction:
        from export.backends.mlc.prediction import predict

        return predict(spec, options, assignments)

    def steps(self, build: Build) -> list[Step]:
        from export.backends.mlc.package_parts import PackageParts

        self.refuse(build.spec, build.options)
        parts = PackageParts(build)
        shards = [Step(f"mlc {shard.file}", partial(parts.write_shard, number)) for number, shard in enumerate(parts.shards)]
        device = Step(f"mlc library for {parts.place}", parts.write_device_library)
        return [
            Step("mlc configuration", parts.write_configuration),
            *([] if host_only(build.options) else [device]),
            Step("mlc library for this machine", parts.write_host_library),
            *shards,
            Step("mlc weight index", parts.write_index),
        ]

    def manifest(self, build: Build) -> dict[str, Any]:
        from export.backends.mlc.package_parts import PackageParts

        parts = PackageParts(build)
        return {**block(parts), **engine_limits(parts)}


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


def block(parts: PackageParts) -> dict[str, Any]:
    """Where things lie and what built them."""
    return {
        "model_id": parts.model_id,
        "model_lib": parts.model_lib,
        "weights": parts.weights_folder.as_posix(),
        "device_library": None if host_only(parts.build.options) else parts.device_library.as_posix(),
        "host_library": parts.host_library.as_posix(),
        "quantization": parts.scheme.name,
        "dtype": parts.scheme.model_dtype,
        "tvm": importlib.metadata.version("apache-tvm"),
        "tvm_ffi": importlib.metadata.version("apache-tvm-ffi"),
        "image_size": parts.overview.image_size,
        "decoder_sides": [tensor.name for tensor in decoder_sides(parts.build.spec)],
    }


def engine_limits(parts: PackageParts) -> dict[str, Any]:
    """What the stock MLC app can do with this package, beside our own runtime."""
    from export.backends.mlc.conversation_template import prompt_facts
    from export.prompts.declared import declared_prompt

    config, prompt = parts.vision_config, prompt_facts(declared_prompt(parts.spec))
    return {
        "stock_app_images": bool(config) and prompt["picture_message"] is not None,
        "stock_app_note": (
            f"send one {config['image_size']} x {config['image_size']} picture; it takes {parts.image_rows} rows"
            if config
            else f"the stock engine cannot count {parts.image_rows} rows per picture; call image_embed yourself"
        ),
        "stock_app_prompt": prompt,
    }
