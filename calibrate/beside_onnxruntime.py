"""Output error per layer beside onnxruntime's own quantisers: same weights, samples and block size.

python -m calibrate.beside_onnxruntime --model minicpm-v --weights demo [--block-size 32] [--samples 24]
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrate.methods import METHODS, method_named
from calibrate.methods.base import LayerProblem
from calibrate.moments import Moment, output_error

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

THEIRS = ("ORT default", "ORT HQQ", "ORT k-quant", "ORT GPTQ")
OURS = tuple(name for name in METHODS if name != "awq")
"""AWQ changes the layer before as well, so that one layer alone says nothing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a Markdown table: error over output power in thousandths, and processor seconds."""
    import torch

    from calibrate.capture import stream
    from calibrate.grids import GRIDS
    from calibrate.request import CalibrationRequest
    from calibrate.run import plan, prompts_of

    parser = argparse.ArgumentParser(prog="python -m calibrate.beside_onnxruntime", description=main.__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--samples", type=int, default=24)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    request = CalibrationRequest(
        given.model, "cpu", "rtn", Path("unused"), weights=given.weights, precision="int4",
        block_size=given.block_size, samples=given.samples,
    )  # fmt: skip
    planned = plan(request)
    checkpoint, layers = planned.checkpoint, planned.wanted["onnx"]
    assert checkpoint.weights is not None
    processor, prompts = prompts_of(request, checkpoint)
    inputs: dict[str, Any] = {}
    moments: dict[str, Moment] = {}
    with _kept_rows(inputs):
        stream(
            checkpoint.spec, checkpoint.weights, prompts, processor, lambda n: n in layers, lambda _, m: moments.update(m)
        )
    columns = ["plain", *THEIRS, *OURS]
    sys.stdout.write("| layer | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|\n")
    for name in layers:
        weight, moment = checkpoint.weights.tensor(f"{name}.weight").float(), moments[name]
        layer = LayerProblem(name, weight, GRIDS[f"ort_int4_b{given.block_size}"], moment)
        power = float(output_error(weight, moment).sum())
        makers: list[Callable[[], Tensor]] = [lambda layer=layer: layer.change(layer.grid.quantise(layer.weight))]
        rows = torch.cat(inputs[str(id(moment))]).numpy()
        makers += [lambda n=n, w=weight, x=rows: _theirs(n, w, x, given.block_size) - w for n in THEIRS]
        makers += [lambda n=n, layer=layer: layer.change(method_named(n).run(layer)) for n in OURS]
        cells = [_timed(make, moment, power) for make in makers]
        sys.stdout.write(f"| {name} | " + " | ".join(cells) + " |\n")
        sys.stdout.flush()
    return 0


def _timed(make: Callable[[], Tensor], moment: Moment, power: float) -> str:
    began = time.process_time()
    change = make()
    seconds = time.process_time() - began
    error = float(output_error(change, moment).sum()) / power
    return f"{1e3 * error:.2f} ({seconds:.2f} s)" if math.isfinite(error) else "not finite"


class _kept_rows:
    """While inside, every `Moment.add` also keeps its rows, by the moment's id; onnxruntime's GPTQ wants them."""

    def __init__(self, kept: dict[str, Any]) -> None:
        self.kept, self.add = kept, Moment.add

    def __enter__(self) -> None:
        add, kept = self.add, self.kept

        def keeping(moment: Moment, rows: Tensor) -> None:
            add(moment, rows)
            kept.setdefault(str(id(moment)), []).append(rows.detach().reshape(-1, rows.shape[-1]).clone())

        Moment.add = keeping  # type: ignore[method-assign]

    def __exit__(self, *error: object) -> None:
        Moment.add = self.add  # type: ignore[method-assign]


def _theirs(name: str, weight: Tensor, rows: np.ndarray, block: int) -> Tensor:
    """The weight as one MatMulNBits of onnxruntime's quantiser reads it: its product with the identity."""
    import numpy as np
    import onnxruntime
    import torch
    from onnxruntime.quantization import matmul_nbits_quantizer as quantizers
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"x": rows}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

        def rewind(self) -> None:
            self.left = [{"x": rows}]

    chosen = {
        "ORT default": lambda: None,
        "ORT HQQ": lambda: quantizers.HQQWeightOnlyQuantConfig(block_size=block, bits=4),
        "ORT k-quant": quantizers.KQuantWeightOnlyQuantConfig,
        "ORT GPTQ": lambda: quantizers.GPTQWeightOnlyQuantConfig(
            calibration_data_reader=Reader(), block_size=block, perchannel=True
        ),
    }[name]()
    quantizer = quantizers.MatMulNBitsQuantizer(
        _one_matmul(weight), block_size=block, is_symmetric=True, accuracy_level=0, algo_config=chosen
    )
    with contextlib.redirect_stdout(sys.stderr):  # it draws a progress bar
        quantizer.process()
    content = quantizer.model.model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": np.eye(weight.shape[1], dtype=np.float32)})[0]).T


def _one_matmul(weight: Tensor) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    stored = numpy_helper.from_array(weight.T.contiguous().numpy(), "w")
    fed = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight.shape[1]])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[0]])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="matmul")], "g", [fed], [made], [stored])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


if __name__ == "__main__":
    sys.exit(main())
