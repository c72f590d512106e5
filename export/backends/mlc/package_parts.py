"""One MLC package being written: its names, plan and files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from export.backends.base import Build
from export.backends.mlc import app_config, chat_config, shards, tokenizer_files
from export.backends.mlc.compile_process import LibraryRequest, compile_together
from export.backends.mlc.conversation_template import conversation_template
from export.backends.mlc.objects import check_library
from export.backends.mlc.overview import PREFIX, Overview, WithOverview, make_overview, overview_shapes
from export.backends.mlc.parameters import GROUP, Parameter, ParameterBytes, parameter_list
from export.backends.mlc.prediction import compiled_together, predict
from export.backends.mlc.record import PHONES
from export.backends.mlc.schemes import Scheme, scheme_of
from export.backends.mlc.stock_engine import stock_engine
from export.backends.mlc.upstream_llama import read_json
from export.compilation.host import X86_64, host_place
from export.modules.build import parameter_count, parameter_shapes
from export.plan.machine import available_memory
from export.prompts.declared import declared_prompt
from export.quantisation.spec import Assignment, Storage
from export.specs import ModelSpec
from runtime_py.backends.mlc import CACHE_NUMBERS, SPARE_POSITIONS
from runtime_py.backends.stock_engine import Use

FOLDER = Path("mlc")

HOST_VARIANTS = {X86_64: ("x86-64-vnni",)}
"""By this machine's kind: keys of `runtime_py.backends.processor.VARIANTS` that products are compiled for once more."""


class PackageParts:
    """Names and plans follow from the build alone, so a resumed export finds the same."""

    def __init__(self, build: Build) -> None:
        self.build, self.spec = build, build.spec
        self.scheme = scheme_of(build.options.precision)
        self.phone = PHONES.get(build.options.target.name)
        self.host = host_place()
        self.place = self.host if self.phone is None else self.phone.place
        self.limits = build.options.limits
        self.engine = stock_engine(build.spec, self.limits)
        self.overview = make_overview(build.spec, build.processor, self.engine.picture)

    # names

    @cached_property
    def model_type(self) -> str:
        return "".join(c if c.isalnum() else "_" for c in self.spec.family)

    @cached_property
    def model_id(self) -> str:
        return f"{self.spec.family}-{self.spec.variant}-{self.scheme.name}-MLC"

    @cached_property
    def model_lib(self) -> str:
        """Name of the library: what it is, and a digest of everything that decides its code."""
        stages = [self.spec.vision, self.spec.connector, self.spec.embed, self.spec.decoder]
        facts = [*stages, self.limits, self.overview.grid, self.overview.sent, SPARE_POSITIONS, CACHE_NUMBERS]
        layers = sorted((name, str(assignment.storage)) for name, assignment in self.build.assignments.items())
        digest = hashlib.md5(repr((facts, layers)).encode(), usedforsecurity=False).hexdigest()[:8]
        return f"{self.model_type}_{self.scheme.name}_{digest}"

    @property
    def weights_folder(self) -> Path:
        return FOLDER / self.model_id

    @property
    def device_library(self) -> Path:
        return FOLDER / "lib" / f"{self.model_lib}-{self.place}.tar"

    @property
    def host_library(self) -> Path:
        return FOLDER / "host" / f"{self.model_lib}-{self.host}.so"

    @cached_property
    def host_kernels(self) -> dict[str, Path]:
        """By variant, the host library's products with more instructions than it needs; none where no product has codes."""
        coded = [one.layer.columns for one in self.build.assignments.values() if one.storage is Storage.INT4]
        if not any(columns % GROUP == 0 for columns in coded):
            return {}
        return {variant: FOLDER / "host" / f"{self.model_lib}-{variant}.so" for variant in HOST_VARIANTS.get(self.host, ())}

    # plans

    @cached_property
    def parameters(self) -> list[Parameter]:
        return declared_parameters(self.spec, self.build.assignments, self.scheme, self.overview)

    @cached_property
    def shards(self) -> list[shards.Shard]:
        weights = WithOverview(self.build.weights, self.overview)
        return shards.plan_shards(ParameterBytes(weights, self.build.codes, self.scheme).stored(self.parameters))

    # steps; each returns the files it made, relative to the package

    def write_shard(self, number: int) -> list[Path]:
        shard = self.shards[number]
        step, done = f"mlc {shard.file}", 0

        def report(count: int) -> None:
            nonlocal done
            done += count
            self.build.progress(step, done, shard.nbytes)

        return self._relative([shards.write_shard(self._made(self.weights_folder), shard, report)])

    def write_index(self, package: Path | None = None) -> list[Path]:
        """Write the index of the shards that lie in ``package``; None for the folder that is written."""
        content = shards.index((package or self.build.folder) / self.weights_folder, self.shards, parameter_count(self.spec))
        return self._relative(shards.write_index(self._made(self.weights_folder), content))

    def write_configuration(self) -> list[Path]:
        folder = self._made(self.weights_folder)
        names = tokenizer_files.copy_tokenizer(self.build.folder, folder)
        written = [folder / name for name in names]
        if self.engine.use is not Use.NOTHING:
            written.append(shards.write_json(folder / "mlc-chat-config.json", self._chat_config(folder, names)))
        return self._relative(written)

    def _chat_config(self, folder: Path, names: Sequence[str]) -> dict[str, Any]:
        checkpoint, ours = self.build.checkpoint, self.spec.generation
        assert checkpoint.folder is not None
        stored = {**checkpoint.stated, **read_json(checkpoint.folder / "generation_config.json")}
        request = chat_config.ChatRequest(
            model_type=self.model_type,
            quantization=self.scheme.name,
            limits=self.limits,
            generation=chat_config.generation(stored, ours),
            conversation=conversation_template(declared_prompt(self.spec), ours["stop_ids"]),
            tokenizer_files=tuple(names),
            tokenizer_info=tokenizer_files.tokenizer_info(folder),
            active_vocabulary=tokenizer_files.active_vocabulary(folder, self.spec.decoder.vocabulary),
            extra=chat_config.vision_config(self.engine.picture),
        )
        return chat_config.chat_config(self.spec.decoder, request)

    def write_app_configuration(self) -> list[Path]:
        """The files of the phone's app (see app_config), which list the model and the memory it needs; none where the app's
        engine would die of the model.
        """
        assert self.phone is not None
        if self.engine.use is Use.NOTHING:
            return []
        needed = sum(predict(self.spec, self.build.options, self.build.assignments).device_bytes.values())
        entry = app_config.AppEntry(self.model_id, self.model_lib, needed, self.limits)
        library = self.device_library.relative_to(FOLDER)
        return self._relative(app_config.write(self._made(FOLDER), entry, self.phone, library))

    def write_libraries(self, device: bool) -> list[Path]:
        """This machine's library and, with ``device``, the phone's: at once where there is memory for two compilers."""
        paths = {self.host: self.host_library}
        if device and self.phone is not None:
            paths = {self.place: self.device_library, **paths}
        outs = {place: self._made(path.parent) / path.name for place, path in paths.items()}
        for places in compiled_together(self.spec, list(outs), available_memory()):
            further = {variant: self.build.folder / path for variant, path in self.host_kernels.items()}
            compile_together(self.request(), {place: outs[place] for place in places}, {self.host: further})
        if self.place in outs and self.place != self.host:
            check_library(outs[self.place], self.model_lib)
        return [*paths.values(), *self.host_kernels.values()]

    def request(self) -> LibraryRequest:
        """What the compiler is asked for."""
        return LibraryRequest(
            name=self.model_lib,
            model_type=self.model_type,
            spec=self.spec,
            assignments=self.build.assignments,
            scheme=self.scheme,
            limits=self.limits,
            overview=self.overview,
            parameters=tuple(self.parameters),
        )

    def _made(self, folder: Path) -> Path:
        path = self.build.folder / folder
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _relative(self, paths: list[Path]) -> list[Path]:
        return [path.relative_to(self.build.folder) for path in paths]


def declared_parameters(
    spec: ModelSpec, assignments: Mapping[str, Assignment], scheme: Scheme, overview: Overview
) -> list[Parameter]:
    """What a package stores and its library declares: the weights, then the overview's side inputs."""
    shapes = parameter_shapes(spec)
    if spec.decoder.tied_head:
        shapes.pop("decoder.head.weight", None)
    sides = overview_shapes(spec, overview)
    constants = [Parameter(PREFIX + name, PREFIX + name, shape, "float32") for name, shape in sides.items()]
    return parameter_list(shapes, assignments, scheme) + constants
