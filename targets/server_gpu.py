"""A server with NVIDIA GPUs: a model of a Triton repository, ONNX graphs and TensorRT engines.

What always runs comes first: engines serve some GPUs and not others, and may have to be built where the GPU is. They take
a token of eight sequences in a call: as many as `serve` and Triton's model answer at a time unless told otherwise.
"""

from __future__ import annotations

from dataclasses import replace

from runtime_py.backends.records import ONNX, TENSORRT
from targets.base import ModelServer
from targets.desktop_gpu import TARGET as DESKTOP

TARGET = replace(
    DESKTOP,
    name="server-gpu",
    title="NVIDIA server GPU (compute capability 8.0 or later), behind Triton, through TensorRT or onnxruntime-gpu",
    backends=(ONNX, TENSORRT),
    limits=replace(DESKTOP.limits, batch=8),
    contains=(
        "what server-cpu's repository has, and build_engines.py, which builds engines in the server's container",
        "MODEL/1/package/onnx/: four graphs, for onnxruntime-gpu, and for the processor where there is no GPU",
        "MODEL/1/package/tensorrt/sources/: the graphs that engines are built from",
        "MODEL/1/package/tensorrt/: engines for compute capability 8.0, 8.6, 8.9 and 12.x, if this machine can build them",
    ),
    needs=(
        "tritonserver with its Python backend, and a Python with the repository's requirements.txt (numpy 1)",
        "an NVIDIA driver; for engines the TensorRT flavour and version that manifest.json names",
    ),
    server=ModelServer(
        instances="KIND_AUTO",
        distributions=(
            *(f"{each.name}{each.versions}" for each in (ONNX.distributions[1], *TENSORRT.distributions)),
            "tensorrt>=10.15,<12",
        ),
        gpus=1,
    ),
)
