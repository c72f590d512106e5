"""The ONNX Runtime backend on small graphs made here: contracts, types, devices and what goes wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from runtime_py.backends import ort_stages
from runtime_py.backends.base import OpensAhead, Rewinding
from runtime_py.backends.ort import OrtBackend
from runtime_py.backends.ort_providers import LOWEST
from runtime_py.contracts import CONNECTOR, VISION, StageContract, TensorContract
from runtime_py.errors import MachineError, PackageError, UsageError

WIDTH = 4


def package(folder: Path, border: int = TensorProto.FLOAT) -> dict[str, Any]:
    """A package of one stage that doubles its input, in the given float type at its border; its manifest."""
    values = [helper.make_tensor_value_info(name, border, ["images", WIDTH]) for name in ("pixel_values", "vision_features")]
    node = helper.make_node("Add", ["pixel_values", "pixel_values"], ["vision_features"])
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), str(folder / "v.onnx"))
    contract = StageContract(
        VISION,
        (TensorContract("pixel_values", "float32", ("images", WIDTH)),),
        (TensorContract("vision_features", "float32", ("images", WIDTH)),),
    )
    return {
        "backends": {"onnx": {"stages": {VISION: {"file": "v.onnx"}}}},
        "files": [{"path": "v.onnx", "bytes": 0, "sha256": "0" * 64}],
        "contracts": {VISION: contract.to_json(), CONNECTOR: StageContract(CONNECTOR, (), ()).to_json()},
    }


@pytest.mark.parametrize("border", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_the_border_is_float32_whatever_the_graph_takes(tmp_path: Path, border: int) -> None:
    backend = OrtBackend(tmp_path, package(tmp_path, border), threads=1)
    pixels = np.arange(8, dtype=np.float32).reshape(2, WIDTH)
    features = backend.run(VISION, {"pixel_values": pixels})["vision_features"]
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, 2 * pixels)
    assert isinstance(backend, Rewinding)
    assert isinstance(backend, OpensAhead)
    backend.close()


def test_inputs_are_held_to_the_contract(tmp_path: Path) -> None:
    backend = OrtBackend(tmp_path, package(tmp_path), threads=1)
    with pytest.raises(PackageError, match="'pixel_values' does not fit"):
        backend.run(VISION, {"pixel_values": np.zeros((1, WIDTH + 1), np.float32)})
    with pytest.raises(PackageError, match="'pixel_values' is missing"):
        backend.run(VISION, {})
    with pytest.raises(PackageError, match="no graph of the stage connector"):
        backend.run(CONNECTOR, {})


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ((), ("vision_features",), "needs 'pixel_values'"),
        (("pixel_values",), ("features",), "gives no 'features'"),
    ],
)
def test_a_graph_is_held_to_its_contract(
    tmp_path: Path, inputs: tuple[str, ...], outputs: tuple[str, ...], words: str
) -> None:
    manifest = package(tmp_path)
    shape = ("images", WIDTH)
    contract = StageContract(
        VISION,
        tuple(TensorContract(name, "float32", shape) for name in inputs),
        tuple(TensorContract(name, "float32", shape) for name in outputs),
    )
    manifest["contracts"][VISION] = contract.to_json()
    with pytest.raises(PackageError, match=words):
        OrtBackend(tmp_path, manifest, threads=1).load()


@pytest.mark.parametrize(("version", "refused"), [("1.22.1", True), ("1.23.0", False), ("2.0.0.dev20270101", False)])
def test_an_onnxruntime_that_cannot_load_the_graphs_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, refused: bool
) -> None:
    monkeypatch.setattr("onnxruntime.__version__", version)
    manifest = package(tmp_path)
    if not refused:
        OrtBackend(tmp_path, manifest).close()
        return
    with pytest.raises(MachineError, match=f"ONNX Runtime {version} is too old") as caught:
        OrtBackend(tmp_path, manifest)
    assert caught.value.expected == "ONNX Runtime 1.23 or later"


def test_pyproject_asks_for_no_older_onnxruntime_than_loads_the_graphs() -> None:
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = f">={LOWEST[0]}.{LOWEST[1]},"
    assert [name for name in (*extras["onnx"], *extras["gpu"]) if name.startswith("onnxruntime")] == [
        f"onnxruntime{wanted}<2",
        f"onnxruntime-gpu{wanted}<2",
    ]


def test_a_damaged_graph_is_named(tmp_path: Path) -> None:
    manifest = package(tmp_path)
    (tmp_path / "v.onnx").write_bytes(b"not a graph")
    with pytest.raises(PackageError, match=r"v\.onnx is no ONNX graph"):
        OrtBackend(tmp_path, manifest)
    (tmp_path / "v.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(PackageError, match=r"cannot load .*v\.onnx"):
        OrtBackend(tmp_path, manifest).run(VISION, {"pixel_values": np.zeros((1, WIDTH), np.float32)})


def test_a_package_without_graphs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="names no ONNX graphs"):
        OrtBackend(tmp_path, {"backends": {"mlc": {}}, "contracts": {}})


def test_a_provider_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="has no NoSuchExecutionProvider"):
        OrtBackend(tmp_path, package(tmp_path), providers=["NoSuchExecutionProvider"])


def test_a_provider_that_does_not_start_is_no_quiet_processor_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime leaves a provider out whose libraries are missing, and the session runs on the processor instead."""
    monkeypatch.setattr(ort_stages, "available", lambda _ort, wanted: [*wanted, "CPUExecutionProvider"])
    backend = OrtBackend(tmp_path, package(tmp_path), providers=["CUDAExecutionProvider"])
    warned = pytest.warns(UserWarning, match="CUDAExecutionProvider")
    with warned, pytest.raises(MachineError, match="could not start CUDAExecutionProvider"):
        backend.run(VISION, {"pixel_values": np.zeros((1, WIDTH), np.float32)})
    warned = pytest.warns(UserWarning, match="CUDAExecutionProvider")
    with warned, pytest.raises(MachineError, match="found only CPUExecutionProvider"):
        backend.load()


def test_expected_stages_open_before_they_are_run(tmp_path: Path) -> None:
    backend = OrtBackend(tmp_path, package(tmp_path))
    backend.open_ahead([VISION, CONNECTOR])  # the package has no connector, which shows when it is run
    backend.release()  # waits for what is opening
    backend.open_ahead([VISION])
    pixels = np.ones((1, WIDTH), np.float32)
    np.testing.assert_array_equal(backend.run(VISION, {"pixel_values": pixels})["vision_features"], 2 * pixels)
    backend.close()
    backend.open_ahead([VISION])
    with pytest.raises(UsageError, match="is closed"):
        backend.run(VISION, {"pixel_values": pixels})


def test_a_device_is_given_no_stage_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_stages, "available", lambda _ort, wanted: [*wanted, "CPUExecutionProvider"])
    monkeypatch.setattr(OrtBackend, "_open", lambda self, stage: pytest.fail("opened"))
    OrtBackend(tmp_path, package(tmp_path), providers=["CUDAExecutionProvider"]).open_ahead([VISION])


def test_load_opens_every_stage(tmp_path: Path) -> None:
    manifest = package(tmp_path)
    OrtBackend(tmp_path, manifest).load()
    (tmp_path / "v.onnx").unlink()
    with pytest.raises(PackageError, match=r"missing: v\.onnx"):
        OrtBackend(tmp_path, manifest).load()
