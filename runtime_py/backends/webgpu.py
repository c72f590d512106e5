"""ONNX Runtime's WebGPU provider: the graphs of a package on any GPU with a driver for Vulkan, Direct3D 12 or Metal.

It comes inside onnxruntime-webgpu or as a plugin beside onnxruntime (onnxruntime-ep-webgpu); `WebGpu` finds either. What the
device has and whether the provider's attention is right on it is tried before a graph is opened. Graphs are opened as copies
in memory that avoid what is not there, so that a wrong kernel is never used without a word (docs/targets/webgpu.md).
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.backends import attention_trial
from runtime_py.errors import MachineError

log = logging.getLogger("edgeproof")

NAME, PROVIDER, PLUGIN = "webgpu", "WebGpuExecutionProvider", "onnxruntime_ep_webgpu"
INSTALL = "pip install 'edgeproof[webgpu]'"


def full_name(provider: str) -> str:
    """ONNX Runtime's name of a provider; ``webgpu`` stands for its WebGPU provider."""
    return PROVIDER if provider == NAME else provider


@cache
def webgpu(ort: Any) -> WebGpu:
    """The provider of this process, tried when it is first asked for.

    Args:
        ort: the module onnxruntime.

    Raises:
        MachineError: it is not installed, or finds no device.
    """
    return WebGpu(ort)


class WebGpu:
    """The provider on this machine's GPU.

    Args:
        ort: the module onnxruntime.

    Raises:
        MachineError: the provider or the module onnx is not installed, or no device is there.
    """

    def __init__(self, ort: Any) -> None:
        self._ort = ort
        try:
            import onnx  # noqa: F401
        except ImportError as error:
            raise MachineError(
                "graphs cannot be prepared for WebGPU: the module onnx is not installed", "the module onnx", INSTALL
            ) from error
        self._device = _plugin_device(ort)
        if self._device is None and PROVIDER not in ort.get_available_providers():
            _refuse(ort)
        self._try_to_start()

    @cached_property
    def half(self) -> bool:
        """Whether the device computes in float16 (the feature shader-f16)."""
        value = np.ones((4,), np.float16)
        try:
            return bool((self.run(_doubled(value.dtype), {"x": value}) == 2).all())
        except Exception:  # whatever onnxruntime raises where a shader needs a feature that is missing
            return False

    @cached_property
    def attention_errors(self) -> Mapping[str, float]:
        """How far the provider's attention is off, over the largest value, by what was tried."""
        return {trial.name: trial.error(self.run) for trial in self._tried}

    @cached_property
    def _tried(self) -> list[attention_trial.Trial]:
        cached_in_half = [attention_trial.cached(np.dtype(np.float16))] if self.half else []
        return [*attention_trial.trials(), *cached_in_half]

    @cached_property
    def attention_is_right(self) -> bool:
        """Whether every trial is within its limit; says on stderr what is done where one is not."""
        limits = {trial.name: trial.limit for trial in self._tried}
        name, worst = max(self.attention_errors.items(), key=lambda pair: pair[1] / limits[pair[0]])
        if worst <= limits[name]:
            return True
        off = "fails" if math.isinf(worst) else f"is {worst:.0%} off"
        log.warning(
            "%s: its attention %s on this device (%s); attention is computed as two products and a softmax instead",
            PROVIDER,
            off,
            name,
        )
        return False

    def session(self, path: Path, options: Any) -> Any:
        """An ONNX Runtime session of a graph file, on the provider wherever that has a kernel.

        Raises:
            MachineError: the provider did not start.
        """
        import onnx

        return self.session_of(onnx.load(str(path), load_external_data=False), path.parent, options)

    def session_of(self, model: Any, folder: Path, options: Any) -> Any:
        """The same of an onnx.ModelProto, which is changed in place; its weights lie in ``folder``."""
        from runtime_py.backends import decompose

        decompose.split_fused_products(model)
        if not (self.half and self.attention_is_right):
            decompose.widen(model)
        if not self.half:
            decompose.round_in_float32(model)
        if not self.attention_is_right:
            decompose.decompose_attention(model)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        return self._open(model.SerializeToString(), options)

    def _open(self, model: bytes, options: Any) -> Any:
        if self._device is not None:
            options.add_provider_for_devices([self._device], {})
            session = self._ort.InferenceSession(model, options)
        else:
            session = self._ort.InferenceSession(model, options, providers=[PROVIDER], enable_fallback=0)
        if PROVIDER not in session.get_providers():
            raise _no_device("the lines above say what is missing")
        return session

    def run(self, model: bytes, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """The first output of a model, which is opened as it is."""
        options = self._ort.SessionOptions()
        options.log_severity_level = 4  # fatal: a feature that is missing is an answer here
        output: np.ndarray = self._open(model, options).run(None, dict(feeds))[0]
        return output

    def _try_to_start(self) -> None:
        value = np.ones((4,), np.float32)
        try:
            self.run(_doubled(value.dtype), {"x": value})
        except MachineError:
            raise
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            raise _no_device(str(error)) from error


def _doubled(kind: np.dtype) -> bytes:
    """A model that adds its input (4,) to itself."""
    from onnx import helper

    element = helper.np_dtype_to_tensor_dtype(kind)
    values = [helper.make_tensor_value_info(name, element, [4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubled", values[:1], values[1:])
    made: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    return made


def _plugin_device(ort: Any) -> Any:
    """The device of the plugin, which is registered with ONNX Runtime where it is installed; None without one."""
    try:
        plugin = importlib.import_module(PLUGIN)
    except ImportError:
        return None
    if not hasattr(ort, "register_execution_provider_library"):
        return None
    try:
        ort.register_execution_provider_library(NAME, plugin.get_library_path())
    except Exception as error:  # onnxruntime's own class; also when it is registered already
        log.debug("%s: %s", PLUGIN, error)
    return next((device for device in ort.get_ep_devices() if device.ep_name == PROVIDER), None)


def _plugin_installed() -> bool:
    return importlib.util.find_spec(PLUGIN) is not None


def _refuse(ort: Any) -> None:
    if _plugin_installed():
        raise _no_device("onnxruntime-ep-webgpu lists none; on Linux it looks in /sys/class/drm")
    raise MachineError(
        f"ONNX Runtime {ort.__version__} has no {PROVIDER}",
        "onnxruntime-ep-webgpu beside onnxruntime 1.24.4 or later, or onnxruntime-webgpu in its place",
        f"{INSTALL}, or leave the provider out",
    )


def _no_device(why: str) -> MachineError:
    return MachineError(
        f"ONNX Runtime could not start {PROVIDER}",
        f"a GPU with a driver for Vulkan (libvulkan.so.1), Direct3D 12 or Metal: {why}",
        "install the GPU's driver, or leave the provider out; docs/targets/webgpu.md has a driver in software",
    )
