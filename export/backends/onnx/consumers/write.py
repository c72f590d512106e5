"""Writes what other tools open, once the stages' graphs and the checkpoint's own files are in the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.backends.base import Build
from export.backends.onnx.consumers.genai import CONFIG, genai_config
from export.backends.onnx.consumers.held import Tool, joined_file, obstacles, placeholder, tower_by_grid
from export.backends.onnx.consumers.transformers_js import picture_files, tool_config
from export.package.journal import write_json
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, VISION

JOINED, EMBEDDING, LAST = "pictures", "embedding", "last_logits"
"""The further graphs, as backends.onnx.further_graphs of the manifest calls them."""


def further_files(stages: Mapping[str, Path], held: bool) -> dict[str, Path]:
    """Where the further graphs of a package lie, by what they are for.

    Args:
        stages: stage to its graph's path.
        held: whether onnxruntime-genai can hold the model (`obstacles`), which wants two graphs of its own.
    """
    files = {JOINED: joined_file(stages[VISION])}
    if held:
        files[EMBEDDING] = stages[EMBED].with_name(f"genai_{stages[EMBED].name}")
        files[LAST] = stages[DECODER].with_name(f"genai_{stages[DECODER].name.replace('_model_merged', '')}")
    return files


def write_graphs(build: Build, stages: Mapping[str, Path], cache: str) -> list[Path]:
    """Write the further graphs; returns their paths in the package. ``cache`` is the dtype of the key/value cache."""
    import onnx

    from export.backends.onnx.consumers import joined
    from export.backends.onnx.consumers.grids import grid_graph
    from export.backends.onnx.description import describe, metadata
    from export.graphs.writer import write_graph

    models = {stage: onnx.load(str(build.folder / path), load_external_data=False) for stage, path in stages.items()}
    files = further_files(stages, not obstacles(build.spec, Tool.GENAI, cache))
    graphs = {JOINED: joined.picture_graph(models[VISION], models[CONNECTOR])}
    tower = tower_by_grid(build.spec)
    if tower is not None:
        graphs[JOINED] = grid_graph(graphs[JOINED], tower)
    if EMBEDDING in files:
        graphs[EMBEDDING] = joined.embedding_graph(models[EMBED], placeholder(build.spec))
        graphs[LAST] = joined.last_logits_graph(models[DECODER])
    for name, path in files.items():
        describe(graphs[name], metadata(build.spec, name, build.options.precision))
        write_graph(graphs[name], build.folder / path)
    return list(files.values())


def write_settings(build: Build, stages: Mapping[str, Path], cache: str, cache_width: int) -> list[Path]:
    """Write the settings of tools that can hold the model, over the checkpoint's copies; returns their paths."""
    spec, folder = build.spec, build.folder
    stated = _stated(folder)
    graphs = {name: path.as_posix() for name, path in further_files(stages, True).items()}
    opened = {"vision_encoder": graphs[JOINED], "embed_tokens": stages[EMBED].as_posix()}
    opened["decoder_model_merged"] = stages[DECODER].as_posix()
    values: dict[str, Any] = {}
    if not obstacles(spec, Tool.TRANSFORMERS_JS, cache):
        values["config.json"] = tool_config(spec, stated, opened, cache, cache_width)
        values |= {name: value for name, value in picture_files(spec).items() if not (folder / name).exists()}
    if not obstacles(spec, Tool.GENAI, cache):
        values[CONFIG] = genai_config(spec, build.options.limits, graphs, cache_width, stated)
    for name, value in values.items():
        write_json(folder / name, value)
    return [Path(name) for name in values]


def _stated(folder: Path) -> dict[str, Any]:
    """The checkpoint's config.json, as the package has it."""
    path = folder / "config.json"
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return value
