"""A server without a GPU: a model of a Triton repository, through ONNX Runtime.

A target of its own beside ``server-gpu``, and no choice of engine within one: what differs is what every target says of
itself, the files in the package, its precisions, and the devices that it is held against.
"""

from __future__ import annotations

from dataclasses import replace

from runtime_py.backends.records import ONNX
from targets.base import ModelServer
from targets.cpu import TARGET as CPU

TARGET = replace(
    CPU,
    name="server-cpu",
    title="x86-64 or arm64 server, behind Triton, through ONNX Runtime",
    contains=(
        "MODEL/config.pbtxt and MODEL/1/model.py: the model as Triton's Python backend loads it",
        "MODEL/1/package/: the package, as target cpu has it; MODEL/1/runtime/: the code that answers with it",
        "README.md, smoke_client.py, Dockerfile, compose.yaml, kubernetes.yaml, model_analyzer.yaml, requirements.txt",
    ),
    needs=("tritonserver with its Python backend, and a Python with the repository's requirements.txt (numpy 1)",),
    server=ModelServer(
        instances="KIND_CPU", distributions=tuple(f"{each.name}{each.versions}" for each in ONNX.distributions[:1])
    ),
)
