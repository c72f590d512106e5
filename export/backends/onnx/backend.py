"""The ONNX backend: four graphs for ONNX Runtime, each with its weights in a data file beside it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.backends.base import Build, BuildOptions, ExportBackend, Prediction, Step
from export.backends.onnx.choices import HEAD, TABLE, OnnxChoices, assign, choices, sharing
from export.backends.onnx.many_rows import (
    LEAST_SEQUENCES,
    in_common,
    many_rows_file,
    requantised,
    second_assignments,
)
from export.backends.onnx.stage_graphs import (
    FOLDER,
    block_outputs,
    chosen_for,
    data_name,
    one_table,
    stage_file,
    stage_files,
    stage_model,
)
from export.quantisation.codes import WeightProvider
from export.quantisation.spec import Assignment, Storage
from runtime_py.backends import records
from runtime_py.backends.records import DECODER_LIBRARY, INT8_CACHE, MANY_ROWS, VISION_LIBRARY
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, VISION
from runtime_py.memory import human_bytes

if TYPE_CHECKING:
    from export.graphs.apart import GraphsApart
    from export.specs import ModelSpec

WRITTEN = (EMBED, DECODER, VISION, CONNECTOR)
"""The order of the steps: the table before the decoder, which may read it, and the decoder, whose weights take longest to
write, before the tower, which takes longest to trace."""


class OnnxBackend(ExportBackend):
    """fp32, fp16 and int4 packages; see docs/targets/cpu.md."""

    name = records.ONNX.name

    def assignments(self, spec: ModelSpec, options: BuildOptions) -> dict[str, Assignment]:
        from export.modules.build import layer_shapes

        chosen = chosen_for(spec, options)
        apart = {layer.name: assign(layer, chosen) for layer in layer_shapes(spec)}
        return sharing(apart) if one_table(spec) else apart

    def predict(self, spec: ModelSpec, options: BuildOptions, assignments: Mapping[str, Assignment]) -> Prediction:
        from export.backends.onnx.prediction import predict

        return predict(spec, options, chosen_for(spec, options), assignments)

    def notes(self, spec: ModelSpec, options: BuildOptions, assignments: Mapping[str, Assignment]) -> tuple[str, ...]:
        from export.backends.onnx.decoder_library import written as decoder
        from export.backends.onnx.finer import finer_layers
        from export.backends.onnx.prediction import second_bytes
        from export.backends.onnx.vision_library import written as vision

        chosen = chosen_for(spec, options)
        size = second_bytes(spec, chosen, assignments)
        told = [f"a second decoder for calls of many rows takes {human_bytes(size)} on the disk and as much in memory"]
        kept = "keys and values are kept in bytes, half of float16; their scales are those of --calibration"
        compiled = [("decoder", decoder.FILES)] if chosen.decoder_library else []
        compiled += [("vision tower", vision.FILES)] if chosen.vision_library else []
        libraries = [
            f"the {stage} is compiled for this machine's kind of processor ({', '.join(files.variants())}) beside its graph"
            for stage, files in compiled
        ]
        finer = finer_layers(assignments, self.assignments(spec, options))
        return (*(told if size else ()), *([kept] if chosen.cache == INT8_CACHE else ()), *libraries, *finer)

    def refuse(self, spec: ModelSpec, options: BuildOptions) -> None:
        from export.backends.onnx.decoder_library import written as decoder
        from export.backends.onnx.vision_library import written as vision

        chosen = chosen_for(spec, options)
        if chosen.decoder_library:
            decoder.refuse(spec, chosen)
        if chosen.vision_library:
            vision.refuse(spec, chosen)

    def wants_cache_scales(self, options: BuildOptions) -> bool:
        return choices(options).cache == INT8_CACHE

    def steps(self, build: Build) -> list[Step]:
        from export.backends.onnx.consumers.write import write_graphs
        from export.graphs.apart import GraphsApart

        chosen, stages = chosen_for(build.spec, build.options), stage_files(build.spec, build.options)
        graphs = GraphsApart({s: partial(stage_model, build.spec, s, chosen, build.assignments) for s in WRITTEN})
        steps = [
            Step(f"onnx {stage}", partial(_write, build, stage, graphs), partial(graphs.begin, stage), graphs.end)
            for stage in WRITTEN
        ]
        if chosen.prefill_precision:
            steps.append(Step("onnx decoder of many rows", partial(_write_many_rows, build)))
        if chosen.decoder_library:
            steps.append(Step("onnx decoder libraries", partial(_write_decoder_libraries, build, stages[DECODER])))
        if chosen.vision_library:
            steps.append(Step("onnx vision libraries", partial(_write_vision_libraries, build, stages[VISION])))
        return [*steps, Step("onnx graphs of other tools", partial(write_graphs, build, stages, chosen.cache))]

    def tool_files(self, build: Build) -> list[Path]:
        from export.backends.onnx.cached_attention import cached_head_width
        from export.backends.onnx.consumers.write import write_settings

        width = cached_head_width(build.spec.decoder.head_dim)
        stages = stage_files(build.spec, build.options)
        return write_settings(build, stages, chosen_for(build.spec, build.options).cache, width)

    def written_again(self, build: Build, block: Mapping[str, Any], package: Path) -> list[Path]:
        from export.backends.onnx.cached_attention import cached_head_width
        from export.backends.onnx.consumers.write import write_settings

        stages, width = _stages_of(block), cached_head_width(build.spec.decoder.head_dim)
        settings = write_settings(build, stages, block["cache"], width)
        return [*settings, *graphs_again(build, stages, block["cache"], package)]

    def stated_again(self, build: Build, block: Mapping[str, Any]) -> dict[str, Any]:
        from export.backends.onnx.cached_attention import cached_head_width
        from export.backends.onnx.operator_set import OPSET

        width = cached_head_width(build.spec.decoder.head_dim)
        stages = {stage: {"file": row["file"], **_dtypes(stage, build)} for stage, row in block["stages"].items()}
        held = {"stages": stages, "opset": OPSET, "cache_head_width": width}
        return {**held, **_of_other_tools(build, _stages_of(block), block["cache"])}

    def made_so(self, spec: ModelSpec, options: BuildOptions, block: Mapping[str, Any]) -> bool:
        chosen = chosen_for(spec, options)
        made, wanted = (block.get("cache"), block.get("accuracy_level")), (chosen.cache, chosen.accuracy_level)
        twice = (MANY_ROWS in block) == bool(chosen.prefill_precision)
        compiled = (DECODER_LIBRARY in block, VISION_LIBRARY in block) == (chosen.decoder_library, chosen.vision_library)
        return made == wanted and twice and compiled

    def manifest(self, build: Build) -> dict[str, Any]:
        from export.backends.onnx.cached_attention import cached_head_width
        from export.backends.onnx.operator_set import OPSET

        chosen = chosen_for(build.spec, build.options)
        files = stage_files(build.spec, build.options)
        return {
            "stages": {stage: {"file": file.as_posix(), **_dtypes(stage, build)} for stage, file in files.items()},
            "opset": OPSET,
            "cache": chosen.cache,
            "cache_head_width": cached_head_width(build.spec.decoder.head_dim),
            "accuracy_level": chosen.accuracy_level,
            **_of_other_tools(build, files, chosen.cache),
            "block_outputs": {stage: block_outputs(build.folder / file) for stage, file in files.items()},
            **_many_rows_block(build, chosen),
            **_library_block(chosen),
        }


def graphs_again(build: Build, stages: Mapping[str, Path], cache: str, package: Path) -> list[Path]:
    """Write the graphs of other tools into ``build.folder``, from those of the stages in ``package``."""
    from export.backends.onnx.consumers.write import write_graphs

    for path in stages.values():
        (build.folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package / path, build.folder / path)
    return write_graphs(build, stages, cache)


def _stages_of(block: Mapping[str, Any]) -> dict[str, Path]:
    """Stage to its graph's path, as a manifest's block names it."""
    return {stage: Path(row["file"]) for stage, row in block["stages"].items()}


def _of_other_tools(build: Build, stages: Mapping[str, Path], cache: str) -> dict[str, Any]:
    """What the manifest says of tools that open the graphs: which are theirs, and what keeps them from the model."""
    from export.backends.onnx.consumers.held import Tool, obstacles
    from export.backends.onnx.consumers.write import further_files

    reasons = {tool: obstacles(build.spec, tool, cache) for tool in Tool}
    further = further_files(stages, not reasons[Tool.GENAI])
    return {
        "further_graphs": {name: file.as_posix() for name, file in further.items()},
        "kept_from_tools_by": {str(tool): list(named) for tool, named in reasons.items()},
    }


def _write(build: Build, stage: str, graphs: GraphsApart) -> list[Path]:
    from export.graphs.stage_values import StageWeights
    from export.graphs.writer import write_stage

    chosen = chosen_for(build.spec, build.options)
    model = graphs.graph(stage)
    source = StageWeights(stage, _weights(build, chosen), build.codes, build.assignments)
    path, progress = build.folder / stage_file(stage, chosen), partial(build.progress, f"onnx {stage}")
    elsewhere = _in_the_table(build, chosen) if stage == DECODER else {}
    written = write_stage(model, source, path, progress, data_name(stage, chosen), elsewhere)
    return [file.relative_to(build.folder) for file in written]


def _weights(build: Build, chosen: OnnxChoices) -> WeightProvider:
    """Every parameter of the graphs, the scales of the cache among them."""
    from export.backends.onnx.cached_attention import cached_head_width
    from export.quantisation.cache_scales import ScaledWeights

    if chosen.cache != INT8_CACHE:
        return build.weights
    assert build.cache_scales is not None, "refused before any work"
    return ScaledWeights(build.weights, build.cache_scales, cached_head_width(build.spec.decoder.head_dim))


def _write_many_rows(build: Build) -> list[Path]:
    from export.graphs.stage_values import StageWeights
    from export.graphs.writer import write_stage

    chosen = chosen_for(build.spec, build.options)
    second = requantised(build.weights, build.codes, build.assignments)
    model = stage_model(build.spec, DECODER, chosen, second.assignments)
    source = StageWeights(DECODER, second.weights, second.codes, second.assignments)
    progress = partial(build.progress, "onnx decoder of many rows")
    common = in_common(build.folder / stage_file(DECODER, chosen), model, build.assignments)
    written = write_stage(model, source, build.folder / many_rows_file(FOLDER), progress, elsewhere=common)
    return [file.relative_to(build.folder) for file in written]


def _write_decoder_libraries(build: Build, graph: Path) -> list[Path]:
    from export.backends.onnx.decoder_library.written import FILES

    progress = partial(build.progress, "onnx decoder libraries")
    return FILES.write(build.folder, FOLDER, (build.folder / graph,), progress)


def _write_vision_libraries(build: Build, graph: Path) -> list[Path]:
    from export.backends.onnx.finer import chosen_grids
    from export.backends.onnx.vision_library.written import FILES

    progress = partial(build.progress, "onnx vision libraries")
    described = (build.spec.vision, build.folder / graph, chosen_grids(build.assignments))
    return FILES.write(build.folder, FOLDER, described, progress)


def _library_block(chosen: OnnxChoices) -> dict[str, Any]:
    """What the manifest says of libraries, where there are some."""
    from export.backends.onnx.decoder_library import written as decoder
    from export.backends.onnx.vision_library import written as vision

    told = {DECODER_LIBRARY: decoder.FILES.block(FOLDER)} if chosen.decoder_library else {}
    return told | ({VISION_LIBRARY: vision.FILES.block(FOLDER)} if chosen.vision_library else {})


def _many_rows_block(build: Build, chosen: OnnxChoices) -> dict[str, Any]:
    """What the manifest says of the second decoder, where there is one."""
    from export.package.manifest import assignment_rows

    if not chosen.prefill_precision:
        return {}
    file = many_rows_file(FOLDER)
    told = {
        "file": file.as_posix(),
        "least_sequences": LEAST_SEQUENCES,
        "assignments": assignment_rows(second_assignments(build.assignments)),
        "block_outputs": block_outputs(build.folder / file),
    }
    return {MANY_ROWS: told}


def _in_the_table(build: Build, chosen: OnnxChoices) -> dict[str, Any]:
    """The head's parameters that the embedding's file holds (export.graphs.writer.Elsewhere); none where it has its own."""
    from export.graphs.stage_values import CODES, SCALES
    from export.graphs.writer import lying

    if build.assignments[HEAD].shares != TABLE:
        return {}
    graph = build.folder / stage_file(EMBED, chosen)  # the stage before the decoder
    table, head = (name.partition(".")[2] for name in (TABLE, HEAD))
    placed = lying(graph, [f"{table}{part}" for part in (CODES, SCALES)])
    return {f"{head}{part}": placed[f"{table}{part}"] for part in (CODES, SCALES)}


def _dtypes(stage: str, build: Build) -> dict[str, Any]:
    """How a stage's matrices are stored, and what it computes in."""
    storages = sorted({str(a.storage) for name, a in build.assignments.items() if name.startswith(f"{stage}.")})
    return {"weights": storages or [str(Storage.FP32)], "compute": "float32"}
