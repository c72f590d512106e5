"""From an ONNX file to a TensorRT network that is ready to build: parse, then mend what the parser cannot say."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from runtime_py.errors import UnsupportedModelError


def parse_network(trt: Any, builder: Any, onnx_file: Path) -> Any:
    """A strongly typed network from an ONNX file with external data.

    Raises:
        UnsupportedModelError: the parser does not read the graph; its own words are in the message.
    """
    # versions without the flag know no other networks than strongly typed ones
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse_from_file(str(onnx_file)):
        parser_errors = (parser.get_error(index) for index in range(parser.num_errors))
        errors = "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in parser_errors)
        raise UnsupportedModelError(
            f"TensorRT {trt.__version__} does not read {onnx_file.name}: {errors}",
            "a parser for ONNX opset 24 (TensorRT 10.15 or later, TensorRT for RTX 1.4 or later)",
            "install a newer TensorRT",
        )
    return network


def finish_attention(trt: Any, network: Any, batch: int, scaled: Collection[str]) -> int:
    """Make every attention layer read what was meant.

    - The parser multiplies queries and keys by the square root of ``scale``. Ours is 1 (the graph scales the queries), and
      for cached keys that would be a pass over the whole cache: the layer is given the tensors before the product.
    - Layers with a mask run over the cache buffer: they are told how much of it is filled, which
      ``attention_mask`` gives. The mask says the same, so this saves work and changes no result.
    - Layers without a fused kernel (float32, odd head sizes) may be taken apart instead of failing.

    Args:
        batch: sequences per call at most.
        scaled: names of the query and key tensors that the ONNX `Attention` nodes read.

    Returns:
        The number of attention layers.
    """
    producers, layers = {}, []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for output in range(layer.num_outputs):
            producers[layer.get_output(output).name] = layer
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layers.append(layer)
    filled = None
    for layer in layers:
        # get_layer gives the base class, which has no ``attention``
        layer.__class__ = trt.IAttentionInputLayer
        attention = layer.attention
        attention.decomposable = True
        for slot in (0, 1):
            name = layer.get_input(slot).name
            if name not in scaled and name in producers and producers[name].get_input(0).name in scaled:
                attention.set_input(slot, producers[name].get_input(0))
        if attention.mask is not None and hasattr(attention, "key_value_lengths"):
            if filled is None:
                filled = _filled_lengths(trt, network, batch)
            attention.key_value_lengths = filled
    return len(layers)


def _filled_lengths(trt: Any, network: Any, batch: int) -> Any:
    """int32 (sequences,): how many positions each has, from ``attention_mask``; of one sequence its shape tells."""
    inputs = (network.get_input(index) for index in range(network.num_inputs))
    mask = next(tensor for tensor in inputs if tensor.name == "attention_mask")
    if batch > 1:
        ones = network.add_cast(mask, trt.int32).get_output(0)
        return network.add_reduce(ones, trt.ReduceOperation.SUM, 1 << 1, False).get_output(0)
    shape = network.add_shape(mask).get_output(0)
    total = network.add_slice(shape, (1,), (1,), (1,)).get_output(0)
    return network.add_cast(total, trt.int32).get_output(0)
