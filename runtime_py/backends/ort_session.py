"""One session of ONNX Runtime over one graph of a package, with the settings that all have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime_py.backends.webgpu import WebGpu
from runtime_py.errors import EdgeproofError, MachineError, PackageError


def open_session(
    ort: Any, path: Path, providers: Sequence[str], threads: int, webgpu: WebGpu | None = None, parallel: bool = False
) -> Any:
    """Open a graph.

    Args:
        ort: the module onnxruntime.
        providers: in order of preference; the first has to start.
        threads: inside an operator; 0 lets ONNX Runtime choose.
        webgpu: what opens sessions of the WebGPU provider, where that is wanted.
        parallel: its weights are packed by all threads, ONNX Runtime 1.32 and later; towers would keep theirs twice.

    Raises:
        MachineError: the first provider does not start here.
        PackageError: the graph cannot be loaded.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # every session has threads of its own: those of the stage before would spin on processors that this one needs
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # weights get memory of their own size, outside the arena, which grows by doubling
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    # int4 layers in standard operators, which are joined at load, round their inputs as MatMulNBits with level 4 does
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    if parallel:
        options.add_session_config_entry("session.prepack.enable_parallel", "1")
    # warnings would mix with what the user reads. On the processor every error comes back as an exception too, and the log
    # line would hand a graph's names to the terminal as they are; other providers say nowhere else what they lack
    options.log_severity_level = 4 if list(providers) == ["CPUExecutionProvider"] else 3
    try:
        if webgpu is not None:
            session = webgpu.session(path, options)
        else:  # no fallback: a provider that fails would be replaced by the processor without an error
            session = ort.InferenceSession(str(path), options, providers=list(providers), enable_fallback=0)
    except EdgeproofError:
        raise
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        raise cannot_load(ort, path, error) from error
    # A provider whose libraries do not load is left out of the session with no more than a line on stderr.
    started = session.get_providers()
    if providers[0] not in started:
        raise MachineError(
            f"ONNX Runtime could not start {providers[0]}",
            f"its libraries and a device, found only {', '.join(started)}; the lines above say what is missing",
            "pip install 'onnxruntime-gpu[cuda,cudnn]' for CUDA's libraries, or choose another provider",
        )
    return session


def cannot_load(ort: Any, path: Path, error: Exception) -> PackageError:
    """What is said of a graph, or of weights beside it, that ONNX Runtime does not take.

    Args:
        path: of the graph, or the folder of one that was changed in memory.
    """
    return PackageError(
        f"ONNX Runtime {ort.__version__} cannot load {path}: {error}",
        "a graph written by the export, whole",
        "check the package's hashes (edgeproof verify), or update onnxruntime",
    )
