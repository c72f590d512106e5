"""A repository over the exported demo package, and what stands in for Triton's stub where it cannot run."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from export.triton.layout import ModelFolder
from export.triton.repository import write_model
from runtime_py.triton.model import TritonModel
from targets.registry import target_named

NAME = "demo"


class TritonError(Exception):
    INVALID_ARG, UNAVAILABLE, INTERNAL, CANCELLED, NOT_FOUND = range(5)

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Tensor:
    given_name: str
    values: np.ndarray

    def name(self) -> str:
        return self.given_name

    def as_numpy(self) -> np.ndarray:
        return self.values


@dataclass
class Response:
    output_tensors: list[Tensor]
    error: TritonError | None = None

    def get(self, name: str) -> Any:
        return next((tensor.values.tolist() for tensor in self.output_tensors if tensor.name() == name), None)


@dataclass
class Sender:
    """Collects what is sent; a response after the last one is the model's fault."""

    responses: list[Response] = field(default_factory=list)
    cancelled: bool = False
    last: threading.Event = field(default_factory=threading.Event)

    def send(self, response: Response, flags: int) -> None:
        assert not self.last.is_set()
        self.responses.append(response)
        if flags == Utilities.TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self.last.set()

    def is_cancelled(self) -> bool:
        return self.cancelled

    @property
    def error(self) -> TritonError:
        assert self.last.wait(60)
        error = self.responses[-1].error
        assert error is not None
        return error

    def text(self) -> str:
        assert self.last.wait(60)
        assert all(response.error is None for response in self.responses), self.responses[-1].error
        return b"".join((response.get("text_output") or [b""])[0] for response in self.responses).decode()


@dataclass
class Request:
    given: Mapping[str, list[Any]]
    sender: Sender = field(default_factory=Sender)
    microseconds: int = 0
    wanted: tuple[str, ...] = ("text_output", "token_ids", "finish_reason", "usage")
    parameter_text: str = ""

    def inputs(self) -> list[Tensor]:
        return [
            Tensor(name, np.array(row, dtype=np.bool_ if name == "stream" else np.object_))
            for name, row in self.given.items()
        ]

    def get_response_sender(self) -> Sender:
        return self.sender

    def requested_output_names(self) -> list[str]:
        return list(self.wanted)

    def timeout(self) -> int:
        return self.microseconds

    def parameters(self) -> str:
        return self.parameter_text


class Metric:
    def __init__(self) -> None:
        self.value = 0.0
        self.observed: list[float] = []

    def set(self, value: float) -> None:
        self.value = value

    def increment(self, value: float) -> None:
        self.value += value

    def observe(self, value: float) -> None:
        self.observed.append(value)


class MetricFamily:
    COUNTER, GAUGE, HISTOGRAM = range(3)
    rows: dict[tuple[str, str], Metric]

    def __init__(self, name: str, description: str, kind: int) -> None:
        assert description
        self.name, self.kind = name, kind

    def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> Metric:
        assert (buckets is not None) == (self.kind == self.HISTOGRAM)
        return Utilities.rows.setdefault((self.name, labels.get("outcome", "")), Metric())


class Logger:
    @staticmethod
    def log_info(text: str) -> None:
        assert text

    log_warn = log_error = log_info


class Utilities:
    """What the module triton_python_backend_utils has of what a model uses."""

    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    Tensor, InferenceResponse, TritonError, MetricFamily, Logger = Tensor, Response, TritonError, MetricFamily, Logger
    rows: ClassVar[dict[tuple[str, str], Metric]] = {}


@pytest.fixture(scope="session")
def repository(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with one model, ``demo``."""
    model = ModelFolder(tmp_path_factory.mktemp("triton") / "repository", NAME)
    shutil.copytree(exported, model.package)
    return write_model(model.package, target_named("server-cpu"))


def parameters(**changed: str) -> str:
    """A model's configuration as Triton hands it over."""
    values = {
        "slots": "2",
        "queue": "1",
        "threads": "1",
        "max_image_mb": "1",
        "max_images": "2",
        "timeout_s": "60",
    } | changed
    return json.dumps({"parameters": {name: {"string_value": value} for name, value in values.items()}})


def arguments(repository: Path, config: str) -> dict[str, str]:
    """What Triton gives to ``initialize``."""
    return {
        "model_config": config,
        "model_repository": str(repository / NAME),
        "model_version": "1",
        "model_name": NAME,
        "model_instance_name": f"{NAME}_0_0",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    }


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[TritonModel]:
    """The model behind ``model.py``, with a stand-in for Triton."""
    Utilities.rows.clear()
    model = TritonModel(Utilities)
    model.initialize(arguments(repository, parameters()))
    yield model
    model.finalize()
