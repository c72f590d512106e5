"""The WebGPU provider without a GPU: what is tried, what a wrong kernel comes to, what is said where it is missing.

The processor's provider stands in for it where graphs are opened: what is changed in a graph is then computed by known
kernels. The kernels themselves: `parity_tests.laboratory.webgpu`, on a GPU or on a driver in software.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from runtime_py.backends import attention_trial, ort_stages, webgpu
from runtime_py.backends.attention_trial import trials
from runtime_py.backends.ort import OrtBackend
from runtime_py.backends.ort_providers import CPU
from runtime_py.contracts import VISION, StageContract, TensorContract
from runtime_py.errors import MachineError, PackageError, UsageError


def on_processor(model: bytes, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    output: np.ndarray = onnxruntime.InferenceSession(model, providers=[CPU]).run(None, dict(feeds))[0]
    return output


def test_right_kernels_pass_the_trial() -> None:
    errors = {trial.name: trial.error(on_processor) for trial in trials()}
    assert len(errors) == 3
    assert max(errors.values()) < 1e-5
    half = attention_trial.cached(np.dtype(np.float16))
    assert 1e-5 < half.error(on_processor) < half.limit


def test_kernels_that_fail_or_give_no_numbers_are_not_right() -> None:
    def broken(_model: bytes, _feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        raise RuntimeError("device lost")

    assert trials()[0].error(broken) == float("inf")
    assert trials()[0].error(lambda _model, feeds: feeds["query"] * np.nan) == float("inf")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The processor's provider in the place of WebGPU's, and the provider made afresh."""
    monkeypatch.setattr(webgpu, "PROVIDER", CPU)
    monkeypatch.setattr(webgpu, "_plugin_device", lambda _ort: None)
    webgpu.webgpu.cache_clear()
    yield
    webgpu.webgpu.cache_clear()


def graph_with_attention(folder: Path) -> Path:
    path = folder / "g.onnx"
    path.write_bytes(trials()[0].model)
    return path


@pytest.mark.usefixtures("stand_in")
def test_where_attention_is_right_it_stays(tmp_path: Path) -> None:
    provider = webgpu.webgpu(onnxruntime)
    assert provider is webgpu.webgpu(onnxruntime)
    assert provider.attention_is_right
    assert operators(provider, graph_with_attention(tmp_path)) == ["MultiHeadAttention"]


@pytest.mark.usefixtures("stand_in")
def test_where_attention_is_wrong_it_is_decomposed_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    provider = webgpu.webgpu(onnxruntime)
    monkeypatch.setattr(provider, "run", lambda model, feeds: on_processor(model, feeds) * 1.3)
    path = graph_with_attention(tmp_path)
    assert "MultiHeadAttention" not in operators(provider, path)
    assert "30% off on this device" in caplog.text
    trial = trials()[0]
    session = provider.session(path, onnxruntime.SessionOptions())
    assert trial.error(lambda _model, feeds: session.run(None, dict(feeds))[0]) < 1e-5


def operators(provider: webgpu.WebGpu, path: Path) -> list[str]:
    """Operators of the copy that a session is made of."""
    seen: list[str] = []
    model = onnx.load(str(path))
    provider.session_of(model, path.parent, onnxruntime.SessionOptions())
    seen += [node.op_type for node in model.graph.node]
    return seen


def test_a_runtime_without_the_provider_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, webgpu.PLUGIN, None)
    monkeypatch.setattr(webgpu, "_plugin_installed", lambda: False)
    bare = SimpleNamespace(__version__="1.32.0", get_available_providers=lambda: [CPU])
    with pytest.raises(MachineError) as raised:
        webgpu.WebGpu(bare)
    assert webgpu.PROVIDER in raised.value.what
    assert "onnxruntime-ep-webgpu" in raised.value.expected
    assert "edgeproof[webgpu]" in raised.value.next_step


def test_a_plugin_without_a_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = SimpleNamespace(get_library_path=lambda: "p.so")
    monkeypatch.setitem(sys.modules, webgpu.PLUGIN, plugin)
    monkeypatch.setattr(webgpu, "_plugin_installed", lambda: True)
    registered: list[str] = []
    bare = SimpleNamespace(
        __version__="1.32.0",
        get_available_providers=lambda: [CPU],
        register_execution_provider_library=lambda name, path: registered.append(f"{name} {path}"),
        get_ep_devices=lambda: [SimpleNamespace(ep_name=CPU)],
    )
    with pytest.raises(MachineError, match="could not start") as raised:
        webgpu.WebGpu(bare)
    assert registered == ["webgpu p.so"]
    assert "/sys/class/drm" in raised.value.expected


def test_the_short_name_is_the_providers(tmp_path: Path) -> None:
    assert webgpu.full_name("webgpu") == "WebGpuExecutionProvider"
    assert webgpu.full_name("CUDAExecutionProvider") == "CUDAExecutionProvider"
    if webgpu.PROVIDER in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the provider")
    with pytest.raises(MachineError):
        OrtBackend(tmp_path, {}, providers=["webgpu"])


@pytest.mark.parametrize("others", [["webgpu", CPU], [CPU, "webgpu"], ["CUDAExecutionProvider", webgpu.PROVIDER]])
def test_no_provider_is_taken_beside_it(tmp_path: Path, others: list[str]) -> None:
    with pytest.raises(UsageError, match="beside other providers"):
        OrtBackend(tmp_path, {}, providers=others)


@pytest.mark.usefixtures("stand_in")
def test_a_graph_of_the_provider_is_held_to_its_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_stages, "WEBGPU", CPU)
    graph_with_attention(tmp_path)
    tensors = [TensorContract(name, "float32", ("images", 4)) for name in ("query", "key", "value", "out")]
    manifest = {
        "backends": {"onnx": {"stages": {VISION: {"file": "g.onnx"}}}},
        "files": [{"path": "g.onnx", "bytes": 0, "sha256": "0" * 64}],
        "contracts": {VISION: StageContract(VISION, tuple(tensors[:2]), tuple(tensors[3:])).to_json()},
    }
    with pytest.raises(PackageError, match=r"is not the graph of its contract: it needs 'value'"):
        OrtBackend(tmp_path, manifest, providers=["webgpu"]).load()
