"""The TensorRT runtime as far as it goes without a GPU: plans, cutting, and what is said when something is missing."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime_py.backends.conftest import HostDevice
from runtime_py.backends.cuda_driver import CudaDriver
from runtime_py.backends.trt import TrtBackend
from runtime_py.backends.trt_device import DeviceMemory
from runtime_py.backends.trt_plan import EnginePlan, Profile, read_plans, split_positions
from runtime_py.backends.trt_rows import RowShape
from runtime_py.contracts import DECODER, EMBED, VISION, StageContract, TensorContract
from runtime_py.errors import MachineError, PackageError, UsageError
from runtime_py.generation.session import Limits, Session
from runtime_py.preprocess.base import Layout
from runtime_py.preprocess.minicpm_v import Processor


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


NO_DRIVER = pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")

DECODER_CONTRACT = StageContract(
    DECODER,
    (
        TensorContract("inputs_embeds", "float32", ("batch", "tokens", 4)),
        TensorContract("position_ids", "int64", (3, "batch", "tokens")),
        TensorContract("visual", "float32", ("batch", 2)),
    ),
    (TensorContract("logits", "float32", ("batch", "outputs", 9)),),
)


def profile(name: str, low: int, high: int) -> Profile:
    def shapes(tokens: int) -> dict[str, tuple[int, ...]]:
        return {"inputs_embeds": (1, tokens, 4), "position_ids": (3, 1, tokens), "visual": (1, 2)}

    return Profile(name, shapes(low), shapes(high))


PLAN = EnginePlan(DECODER, Path("decoder.engine"), DECODER_CONTRACT, (profile("decode", 1, 1), profile("prefill", 1, 6)))


def manifest(folder: Path, flavour: str = "tensorrt-rtx", version: str = "") -> dict[str, Any]:
    if not version and importlib.util.find_spec("tensorrt_rtx"):
        import tensorrt_rtx

        version = tensorrt_rtx.__version__
    (folder / "embed.engine").write_bytes(b"engine")
    contract = StageContract(
        EMBED,
        (TensorContract("input_ids", "int64", ("batch", "tokens")),),
        (TensorContract("inputs_embeds", "float32", ("batch", "tokens", 4)),),
    )
    shapes = {"input_ids": [[1, 1], [1, 8], [1, 64]]}
    stages = {EMBED: {"file": "embed.engine", "profiles": [{"name": "prefill", "shapes": shapes}]}}
    block = {"flavour": flavour, "version": version, "compute_capabilities": ["8.0"], "stages": stages}
    files = [{"path": "embed.engine", "bytes": 0, "sha256": "0" * 64}]
    return {"backends": {"tensorrt": block}, "contracts": {EMBED: contract.to_json()}, "files": files}


def test_the_first_profile_that_covers_a_call_is_taken() -> None:
    def shapes(tokens: int) -> dict[str, tuple[int, ...]]:
        return {"inputs_embeds": (1, tokens, 4), "position_ids": (3, 1, tokens)}

    assert PLAN.choose(shapes(1)) == 0
    assert PLAN.choose(shapes(2)) == 1
    assert PLAN.choose(shapes(6)) == 1
    with pytest.raises(UsageError, match=r"decoder engine was not built for inputs_embeds \[1, 7, 4\]"):
        PLAN.choose(shapes(7))
    with pytest.raises(UsageError):
        PLAN.choose({"inputs_embeds": (1, 4)})


def test_a_long_call_is_cut_along_the_named_axis_only() -> None:
    draw = np.random.default_rng(0)
    inputs = {
        "inputs_embeds": draw.normal(size=(1, 15, 4)),
        "position_ids": np.arange(45).reshape(3, 1, 15),
        "visual": np.ones((1, 2)),
    }
    pieces = list(PLAN.cut(inputs, "tokens"))
    assert [start for start, _ in pieces] == [0, 6, 12]
    assert [piece["inputs_embeds"].shape[1] for _, piece in pieces] == [6, 6, 3]
    for name, axis in (("inputs_embeds", 1), ("position_ids", 2)):
        assert np.array_equal(np.concatenate([piece[name] for _, piece in pieces], axis=axis), inputs[name])
    assert all(piece["visual"] is inputs["visual"] for _, piece in pieces)
    assert len(list(PLAN.cut(inputs, "images"))) == 1


def test_logit_positions_count_from_the_front() -> None:
    assert split_positions([-1, 0, 4, -5], 5) == [4, 0, 4, 0]
    for wrong in (5, -6):
        with pytest.raises(UsageError):
            split_positions([wrong], 5)


def test_plans_come_from_the_manifest(tmp_path: Path) -> None:
    plans = read_plans(tmp_path, manifest(tmp_path))
    assert plans[EMBED].profiles[0].greatest == {"input_ids": (1, 64)}
    assert plans[EMBED].largest("tokens") == 64
    (tmp_path / "embed.engine").unlink()
    with pytest.raises(PackageError, match=r"missing: embed\.engine"):
        read_plans(tmp_path, {**manifest(tmp_path), **_without_engine(tmp_path)})
    with pytest.raises(PackageError, match="no TensorRT engines"):
        read_plans(tmp_path, {"backends": {"onnx": {}}})


def _without_engine(folder: Path) -> dict[str, Any]:
    value = manifest(folder)
    (folder / "embed.engine").unlink()
    return value


@NO_DRIVER
def test_no_driver_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no NVIDIA driver was found"):
        CudaDriver()
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(MachineError, match="no NVIDIA driver was found") as caught:
        TrtBackend(tmp_path, manifest(tmp_path))
    assert "--backend ort" in caught.value.next_step


def test_another_tensorrt_is_refused_by_version(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(MachineError, match=r"built by tensorrt-rtx 0\.1; installed is"):
        TrtBackend(tmp_path, manifest(tmp_path, version="0.1"))
    with pytest.raises(PackageError, match="built by 'antigravity'"):
        TrtBackend(tmp_path, manifest(tmp_path, flavour="antigravity", version="1"))


class HostMemory:
    """Counts what is held; addresses are numbers."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.next = 256

    def allocate(self, size: int) -> int:
        self.next += 256
        self.held[self.next] = size
        return self.next

    def free(self, address: int) -> None:
        del self.held[address]


def test_buffers_grow_and_never_leak() -> None:
    host = HostMemory()
    memory = DeviceMemory(host)  # type: ignore[arg-type]
    first = memory.buffer("scratch", 100)
    assert memory.buffer("scratch", 60) == first
    grown = memory.buffer("scratch", 200)
    assert grown != first
    assert host.held == {grown: 200}
    memory.buffer(f"input {VISION}", 0)
    assert len(host.held) == 2
    memory.free()
    assert host.held == {}


class SummingEngine:
    """Stands where a decoder's engine stands: logits are sums of all that the cache at the given address holds."""

    plan = PLAN

    def __init__(self, device: HostDevice) -> None:
        self.device = device

    def run(self, inputs: dict[str, np.ndarray], cache: dict[str, int]) -> dict[str, np.ndarray]:
        embeds, end = inputs["inputs_embeds"][0], inputs["attention_mask"].shape[1]
        (address,) = cache.values()
        held = self.device.inside(address, SHAPE.size).view(np.float32).reshape(SHAPE.capacity, SHAPE.width)
        held[end - len(embeds) : end] = embeds
        sums = held[:end].cumsum(axis=0)[end - len(embeds) :]
        return {"logits": sums[None, inputs["logit_positions"]]}


SHAPE = RowShape(heads=1, capacity=8, width=4, item=4)


class OnThisMachine(TrtBackend):
    """The backend's own code but for the device and the engine."""

    def __init__(self) -> None:
        self.device = HostDevice()
        self.cuda, self.stream = self.device, 0  # type: ignore[assignment]
        self.block = {"cache": {"capacity": SHAPE.capacity}}
        self.plans = {DECODER: PLAN}
        self._engines = {DECODER: SummingEngine(self.device)}  # type: ignore[dict-item]
        self._alone = self._together = None

    def _row_shapes(self) -> dict[str, RowShape]:
        return {"past_key_values.0.key": SHAPE}


@pytest.mark.parametrize("batch", [False, True])
def test_a_session_whose_memory_was_taken_over_begins_anew(processor: Processor, batch: bool) -> None:
    backend = OnThisMachine()
    layout = Layout(np.array([[1, 7, 8]]), np.zeros(3, bool), {"position_ids": np.arange(9).reshape(3, 1, 3)})
    embeds = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    one, other = (Session(backend, processor, Limits(8, 4)) for _ in range(2))
    for _ in range(2):
        assert np.array_equal(one.prefill(embeds, layout)[0, -1], [12, 15, 18, 21])
        assert one.can_keep(layout, 2)
        if batch:
            backend.start_batch(2, 8)
        else:
            assert np.array_equal(other.prefill(2 * embeds, layout)[0, -1], [24, 30, 36, 42])
        assert not one.can_keep(layout, 2)
        with pytest.raises(UsageError, match="taken over"):
            one.prefill(embeds, layout, keep=2)
