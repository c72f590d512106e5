"""Ways to break an export, ten of them and more, each made in a copy of a package that still verifies, to show that the
report finds them.

The faults are those that exporters really make: two norms swapped, positions shifted, another resize kernel, a square matrix
transposed, a scale left out, a cache that writes one position too early, always or behind a chunk's border alone, a matrix
with the wrong sign, one block's scale missing, a rotary base a hundredth off. Graphs and data are changed, hashes renewed.
`parity_tests.laboratory.break_package` does it to any cpu package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from parity_tests.laboratory.onnx_tamper import tamper
from parity_tests.laboratory.other_settings import bilinear_resize, half_statistics, other_settings, quarter_size
from runtime_py.backends.records import ONNX
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, VISION


@dataclass(frozen=True)
class Fault:
    """One way to break a package.

    Attributes:
        precision: of the package it is made in.
        stage, block: what a report must name; ``inside`` must be in its note.
        step: the answer step that a report must name; 0 when the prompt already differs.
        also: the block in families whose first module behind the fault is another.
        rebuild: whether the check compiles the library anew (``--rebuild``), which alone sees it on every model.
    """

    name: str
    precision: str
    apply: Callable[[Path], None]
    stage: str
    block: str
    inside: str = ""
    step: int = 0
    also: str = ""
    rebuild: bool = False


def change_graph(package: Path, stage: str, change: Callable[[Any], None]) -> None:
    """Change a stage's graph in place and put the new size and hash into the manifest."""
    path = package / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    graph = package / ONNX.block(manifest)["stages"][stage]["file"]
    model = onnx.load(str(graph), load_external_data=False)
    before = model.SerializeToString()
    change(model.graph)
    content = model.SerializeToString()
    assert content != before, "the damage must change something"
    graph.write_bytes(content)
    for row in manifest["files"]:
        if row["path"] == graph.relative_to(package).as_posix():
            row |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _renamed(first: str, second: str) -> Callable[[Any], None]:
    """Every use of one value becomes a use of the other, and the other way round."""
    swap = {first: second, second: first}

    def change(graph: Any) -> None:
        for node in graph.node:
            for place, name in enumerate(node.input):
                node.input[place] = swap.get(name, name)

    return change


def _stored(package: Path, stage: str, name: str) -> np.ndarray:
    """A stored tensor of a stage's graph."""
    manifest = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    graph = package / ONNX.block(manifest)["stages"][stage]["file"]
    values = {value.name: value for value in onnx.load(str(graph), load_external_data=False).graph.initializer}
    return numpy_helper.to_array(values[name], base_dir=str(graph.parent))


def swapped_norms(package: Path) -> None:
    """The second vision block uses its two norms in each other's place."""
    first, second = (_stored(package, VISION, f"blocks.1.norm{number}.weight") for number in (1, 2))
    if np.array_equal(first, second):
        raise ValueError("the two norms are the same")
    for kind in ("weight", "bias"):
        change_graph(package, VISION, _renamed(f"blocks.1.norm1.{kind}", f"blocks.1.norm2.{kind}"))


def shifted_positions(package: Path) -> None:
    """The vision encoder's position table begins one patch late."""
    tamper(package, VISION, "positions", lambda table: np.roll(table, 1, axis=0))


def other_key_positions(package: Path) -> None:
    """The resampler's key positions are laid out column by column instead of row by row."""

    def transposed(table: np.ndarray) -> np.ndarray:
        side = round(len(table) ** 0.5)
        return table.reshape(side, side, -1).swapaxes(0, 1).reshape(table.shape)

    tamper(package, CONNECTOR, "key_positions", transposed)


def of_pictures(precision: str) -> tuple[Fault, ...]:
    """The faults in what the settings of some families say of pictures: their statistics and their largest size."""
    return (
        Fault(
            "wrong pixel statistics", precision, partial(other_settings, change=half_statistics), "preprocess", "normalise"
        ),
        Fault("wrong largest size", precision, partial(other_settings, change=quarter_size), "preprocess", "size"),
    )


def transposed_projection(package: Path) -> None:
    """The second decoder layer's square attention output matrix is stored the wrong way round."""
    tamper(package, DECODER, "layers.1.attention.out.weight", lambda matrix: matrix.T)


def dropped_residual_scale(package: Path) -> None:
    """The first decoder layer adds its MLP's output without the scale that the published code multiplies it by."""

    def change(graph: Any) -> None:
        down = next(node for node in graph.node if "layers.0.mlp.down.weight" in node.input)
        scale = next(node for node in graph.node if node.op_type == "Mul" and down.output[0] in node.input)
        source, target = down.output[0], scale.output[0]
        scale.CopyFrom(helper.make_node("Identity", [source], [target]))

    change_graph(package, DECODER, change)


def dropped_embedding_scale(package: Path) -> None:
    """The token embeddings are not multiplied by the model's embedding scale."""

    def change(graph: Any) -> None:
        scale = next(node for node in graph.node if node.op_type == "Mul")
        source = next(name for name in scale.input if name not in {value.name for value in graph.initializer})
        target = scale.output[0]
        scale.CopyFrom(helper.make_node("Identity", [source], [target]))

    change_graph(package, EMBED, change)


def dropped_block_scales(package: Path) -> None:
    """The scales of one int4 layer are all 1 times the first one's: the codes keep their meaning in one block alone."""
    tamper(package, DECODER, "layers.0.mlp.down.weight_scales", lambda scales: np.full_like(scales, scales.flat[0]))


def negated_down(layer: int) -> Callable[[Path], None]:
    """One decoder layer's int4 down projection has the wrong sign: its scales have."""
    return partial(_tamper_down, layer=layer, change=lambda scales: -scales)


def dropped_one_scale(layer: int) -> Callable[[Path], None]:
    """One block of a decoder layer's int4 down projection, of hundreds, has no scale: it reads as zeros."""

    def dropped(scales: np.ndarray) -> np.ndarray:
        row, column = scales.shape[0] // 2, scales.shape[1] // 2
        scales[row, column] = 0
        return scales

    return partial(_tamper_down, layer=layer, change=dropped)


def _tamper_down(package: Path, layer: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the int4 scales of a layer's first down projection; experts and layers with LoRA have longer names."""
    manifest = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    graph = onnx.load(str(package / ONNX.block(manifest)["stages"][DECODER]["file"]), load_external_data=False).graph
    names = [value.name for value in graph.initializer if value.name.startswith(f"layers.{layer}.")]
    tamper(package, DECODER, next(name for name in names if ".down" in name and name.endswith("weight_scales")), change)


def other_rotary_base(package: Path) -> None:
    """Rotary frequencies are those of a base 1 % larger."""

    def change(graph: Any) -> None:
        angles = next(node for node in graph.node if node.op_type == "Cos").input[0]
        values = {value.name: value for value in graph.initializer}
        made_by = {name: node for node in graph.node for name in node.output}
        waiting, seen = [angles], set()
        while waiting:
            name = waiting.pop()
            value = values.get(name)
            if value is not None and value.data_type == TensorProto.FLOAT and len(value.dims) and max(value.dims) > 1:
                frequencies = numpy_helper.to_array(value)
                shares = np.linspace(0, 1, frequencies.size, endpoint=False, dtype=np.float32).reshape(frequencies.shape)
                value.CopyFrom(numpy_helper.from_array((frequencies * 1.01**-shares).astype(np.float32), name))
                return
            if name in made_by and name not in seen:
                seen.add(name)
                waiting += made_by[name].input
        raise ValueError("the graph has no rotary frequencies")

    change_graph(package, DECODER, change)


def _early(condition: Callable[[str, str], tuple[list[Any], str]]) -> Callable[[Path], None]:
    """Every decoder layer writes and reads one position too early where a condition on two int32 values holds.

    Args:
        condition: from the names of the positions filled and the new tokens to nodes and the name of their 0 or 1.
    """

    def change(graph: Any) -> None:
        attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
        lengths = attention[0].input[5]
        last = next(place for place, node in enumerate(graph.node) if lengths in node.output)
        graph.initializer.append(numpy_helper.from_array(np.array(1, np.int32), "fault.one"))
        nodes, early = condition("fault.past", "fault.new")
        made = [
            helper.make_node("Shape", ["inputs_embeds"], ["fault.shape"], start=1, end=2),
            helper.make_node("Cast", ["fault.shape"], ["fault.new"], to=TensorProto.INT32),
            helper.make_node("Add", [lengths, "fault.one"], ["fault.total"]),
            helper.make_node("Sub", ["fault.total", "fault.new"], ["fault.past"]),
            *nodes,
            helper.make_node("Sub", [lengths, early], ["fault.lengths"]),
        ]
        for node in attention:
            node.input[5] = "fault.lengths"
        for offset, node in enumerate(made):
            graph.node.insert(last + 1 + offset, node)

    return lambda package: change_graph(package, DECODER, change)


def _when_filled(past: str, _new: str) -> tuple[list[Any], str]:
    return [helper.make_node("Min", [past, "fault.one"], ["fault.early"])], "fault.early"


def _behind_a_border(past: str, new: str) -> tuple[list[Any], str]:
    nodes = [
        helper.make_node("Sub", [new, "fault.one"], ["fault.more"]),
        helper.make_node("Min", [past, "fault.more", "fault.one"], ["fault.early"]),
    ]
    return nodes, "fault.early"


def off_by_one_cache(package: Path) -> None:
    """With a filled cache, every decoder layer writes one position too early, over the last one; the prompt is right."""
    _early(_when_filled)(package)


def off_by_one_chunk(package: Path) -> None:
    """The same for several tokens at once: a prompt's second chunk begins over the first one's last position."""
    _early(_behind_a_border)(package)


def of_layer(layer: int) -> tuple[Fault, ...]:
    """The faults that sit in one decoder layer's int4 codes."""
    return (
        Fault("wrong sign of a projection", "int4", negated_down(layer), DECODER, f"layers.{layer}", "mlp.down"),
        Fault("dropped scale (one int4 block)", "int4", dropped_one_scale(layer), DECODER, f"layers.{layer}", "mlp.down"),
    )


FAULTS = (
    Fault("swapped norm", "fp32", swapped_norms, VISION, "blocks.1", "norm1"),
    Fault("wrong position table", "fp32", shifted_positions, VISION, "blocks.input", also="input_norm"),
    Fault("wrong position table (resampler)", "fp32", other_key_positions, CONNECTOR, "key"),
    Fault("wrong resize kernel", "fp32", bilinear_resize, "preprocess", "resize", "bilinear"),
    Fault("transposed projection", "fp32", transposed_projection, DECODER, "layers.1", "attention.out"),
    Fault("dropped scale (residual)", "fp32", dropped_residual_scale, DECODER, "layers.0"),
    Fault("dropped scale (embedding)", "fp32", dropped_embedding_scale, EMBED, "", "stage's output"),
    Fault("dropped scale (int4 layer)", "int4", dropped_block_scales, DECODER, "layers.0", "mlp.down"),
    Fault("off-by-one cache", "fp32", off_by_one_cache, DECODER, "layers.0", "attention", step=1),
    Fault("off-by-one cache (float16 cache)", "int4", off_by_one_cache, DECODER, "layers.0", "attention", step=1),
    *of_layer(1),
    Fault("rotary base 1 % off", "int4", other_rotary_base, DECODER, "layers.0", "attention"),
    Fault("off-by-one cache behind a chunk", "int4", off_by_one_chunk, DECODER, "layers.0", "positions in it"),
)
